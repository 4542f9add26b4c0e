package keyscope

import (
	"google.golang.org/protobuf/compiler/protogen"
)

// names has the Go names that a package declares.
type names map[string]bool

// pick returns the wanted name, with underscores added until no other declaration has it, and
// adds it to n. Each run over the same files returns the same names.
func (n names) pick(wanted string) string {
	for n[wanted] {
		wanted += "_"
	}
	n[wanted] = true
	return wanted
}

// takenNames returns the names that protoc-gen-go and protoc-gen-go-grpc declare in a package,
// for all files of the package that the compiler sent: a message NotesAccess may be in another
// file than the service Notes.
func takenNames(plugin *protogen.Plugin, path protogen.GoImportPath) names {
	taken := names{}
	for _, file := range plugin.Files {
		if file.GoImportPath != path {
			continue
		}
		taken.addMessages(file.Messages)
		taken.addEnums(file.Enums)
		for _, extension := range file.Extensions {
			taken["E_"+extension.GoName] = true
		}
		for _, service := range file.Services {
			taken.addService(service)
		}
	}
	return taken
}

func (n names) addMessages(messages []*protogen.Message) {
	for _, message := range messages {
		n[message.GoIdent.GoName] = true
		for _, field := range message.Fields {
			n[field.GoIdent.GoName] = true // the wrapper of a field in a oneof
		}
		n.addEnums(message.Enums)
		n.addMessages(message.Messages)
	}
}

func (n names) addEnums(enums []*protogen.Enum) {
	for _, enum := range enums {
		n[enum.GoIdent.GoName] = true
		for _, value := range enum.Values {
			n[value.GoIdent.GoName] = true
		}
	}
}

func (n names) addService(service *protogen.Service) {
	name := service.GoName
	for _, declared := range []string{
		name + "Client", "New" + name + "Client", name + "Server", "Unimplemented" + name + "Server",
		"Unsafe" + name + "Server", "Register" + name + "Server", name + "_ServiceDesc",
	} {
		n[declared] = true
	}
	for _, method := range service.Methods {
		for _, suffix := range []string{"_FullMethodName", "Client", "Server"} {
			n[name+"_"+method.GoName+suffix] = true
		}
	}
}
