// Package keyscope generates code for each service of a proto file: the table of what each
// method requires of the API key that it is called with. It refuses a service that has a
// method without a requirement.
package keyscope

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/pluginpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/policy"
)

const keyauthPackage = protogen.GoImportPath("github.com/scribe-mail/keysvc/clients/keyauth")

// fileSuffix ends the names of generated files.
const fileSuffix = "_keyscope.pb.go"

// Generate adds a file to the plugin's answer for each proto file with services. The plugin
// must be made from a request of ParseRequest. The error has one line for each mistake, which
// begins with file:line. catalogue has the scopes that exist; if it is nil, every well-formed
// scope is accepted.
func Generate(plugin *protogen.Plugin, catalogue *policy.Policy) error {
	var problems []error
	taken := make(map[protogen.GoImportPath]names)
	for _, file := range plugin.Files {
		if !file.Generate || len(file.Services) == 0 {
			continue
		}
		tables := make([]table, 0, len(file.Services))
		for _, service := range file.Services {
			read, wrong := readTable(service, catalogue)
			tables = append(tables, read)
			problems = append(problems, wrong...)
		}
		if taken[file.GoImportPath] == nil {
			taken[file.GoImportPath] = takenNames(plugin, file.GoImportPath)
		}
		write(plugin, file, tables, taken[file.GoImportPath])
	}
	return errors.Join(problems...)
}

// ParseRequest reads the request that a proto compiler sends to a plugin. It leaves options
// as bytes: Generate must see if an annotation was given twice, which decoding hides.
func ParseRequest(text []byte) (*pluginpb.CodeGeneratorRequest, error) {
	request := &pluginpb.CodeGeneratorRequest{}
	err := proto.UnmarshalOptions{Resolver: new(protoregistry.Types)}.Unmarshal(text, request)
	return request, err
}

// table has the requirements of the methods of one service.
type table struct {
	service *protogen.Service
	rows    []row
}

type row struct {
	method *protogen.Method
	needs
}

// needs is the requirement of an annotation: what the function of keyauth with the name call returns
// for the scopes. In a service's default, call may be "".
type needs struct {
	call   string
	scopes []string
	// field is the path of the field that holds the workspace; "" for none.
	field string
}

// readTable reads the annotations of a service.
func readTable(service *protogen.Service, catalogue *policy.Policy) (table, []error) {
	read := table{service: service}
	var problems []error
	fallback, problem := accessOf(service.Desc.Options(), keysvcv1.E_DefaultAccess, catalogue)
	if problem != "" {
		return read, []error{at(service.Desc, "service %s: option (keysvc.v1.default_access) %s", service.Desc.FullName(), problem)}
	}
	for _, method := range service.Methods {
		needs, problem := accessOf(method.Desc.Options(), keysvcv1.E_Access, catalogue)
		if problem != "" {
			problems = append(problems, at(method.Desc, "method %s: option (keysvc.v1.access) %s", method.Desc.FullName(), problem))
			continue
		}
		own := needs != nil
		switch {
		case own && needs.call == "":
			problems = append(problems, at(method.Desc, "method %s: option (keysvc.v1.access) %s", method.Desc.FullName(), isEmpty))
			continue
		case own && needs.call == "Public" && needs.field != "":
			problems = append(problems, at(method.Desc,
				"method %s: option (keysvc.v1.access) has a workspace_field beside public: true; there is no key whose workspace it could be", method.Desc.FullName()))
			continue
		case !own && fallback != nil && fallback.call != "":
			copied := *fallback
			needs = &copied
		case own && fallback != nil && needs.field == "":
			needs.field = fallback.field
		}
		if needs != nil && needs.call == "Public" {
			needs.field = ""
		}
		if needs != nil && needs.field != "" {
			if problem := wrongField(method, needs.field); problem != "" {
				problems = append(problems, at(method.Desc, "method %s: workspace_field %q %s", method.Desc.FullName(), needs.field, problem))
				continue
			}
		}
		if needs == nil {
			problems = append(problems, at(method.Desc,
				"method %s does not say what it needs: write option (keysvc.v1.access) = {required_scope: \"resource:action\"}; "+
					"or {identity_only: true}, or {public: true}", method.Desc.FullName()))
			continue
		}
		read.rows = append(read.rows, row{method: method, needs: *needs})
	}
	return read, problems
}

// accessOf returns the requirement of an annotation, nil without an annotation, or what is wrong
// with the annotation. It reads the bytes that the compiler wrote (see ParseRequest): two option
// statements are two values there, and decoding would keep only the last.
func accessOf(options proto.Message, extension protoreflect.ExtensionType, catalogue *policy.Policy) (found *needs, problem string) {
	const unreadable = "cannot be read; was the file made by another version of keysvc/v1/access.proto?"
	var value []byte
	said := false
	for rest := options.ProtoReflect().GetUnknown(); len(rest) > 0; {
		number, kind, length := protowire.ConsumeField(rest)
		if length < 0 {
			return nil, unreadable
		}
		if number == extension.TypeDescriptor().Number() {
			_, _, tag := protowire.ConsumeTag(rest)
			part, _ := protowire.ConsumeBytes(rest[tag:length])
			if kind != protowire.BytesType {
				return nil, unreadable
			}
			said, value = true, append(value, part...)
		}
		rest = rest[length:]
	}
	if !said {
		return nil, ""
	}
	set, fields := 0, 0
	for rest := value; len(rest) > 0; {
		number, _, length := protowire.ConsumeField(rest)
		if length < 0 {
			return nil, unreadable
		}
		if number == workspaceField {
			fields++
		} else {
			set++
		}
		rest = rest[length:]
	}
	switch {
	case set > 1:
		return nil, "sets more than one of required_scope, identity_only, public, all_of and any_of; keep one"
	case fields > 1:
		return nil, "sets workspace_field more than once; keep one"
	}
	var access keysvcv1.Access
	if err := proto.Unmarshal(value, &access); err != nil || len(access.ProtoReflect().GetUnknown()) > 0 ||
		len(access.GetAllOf().ProtoReflect().GetUnknown()) > 0 || len(access.GetAnyOf().ProtoReflect().GetUnknown()) > 0 {
		return nil, unreadable
	}
	if fields > 0 && access.GetWorkspaceField() == "" {
		return nil, "has an empty workspace_field; leave it out, or name a field of the request"
	}
	if access.GetRequirement() == nil && fields > 0 {
		return &needs{field: access.GetWorkspaceField()}, ""
	}
	demanded, problem := readAccess(&access, catalogue)
	if problem != "" {
		return nil, problem
	}
	demanded.field = access.GetWorkspaceField()
	return &demanded, ""
}

// workspaceField is the number of Access.workspace_field.
const workspaceField = 6

// isEmpty is what is wrong with an annotation without a requirement.
const isEmpty = "is empty; allowed are required_scope, all_of, any_of, identity_only: true and public: true"

// wrongField returns what is wrong with a path of workspace_field; "" for nothing.
func wrongField(method *protogen.Method, path string) string {
	if method.Desc.IsStreamingClient() {
		return "is on a method that streams its requests, of which only the first may name the workspace; check it in the handler, and name workspace_field only on the methods that have one request"
	}
	message := method.Desc.Input()
	for {
		name, rest, more := strings.Cut(path, ".")
		field := message.Fields().ByName(protoreflect.Name(name))
		switch {
		case field == nil:
			return fmt.Sprintf("is not there: message %s has no field %q", message.FullName(), name)
		case field.IsList() || field.IsMap():
			return fmt.Sprintf("is not one text: %s is repeated", field.FullName())
		case !more && field.Kind() != protoreflect.StringKind:
			return fmt.Sprintf("is not one text: %s is of type %s; a string is required", field.FullName(), field.Kind())
		case !more:
			return ""
		case field.Message() == nil:
			return fmt.Sprintf("is not there: %s is no message and has no fields", field.FullName())
		}
		message, path = field.Message(), rest
	}
}

// readScopes returns the requirement of all_of and any_of.
func readScopes(call, field string, scopes []string, catalogue *policy.Policy) (demanded needs, problem string) {
	if len(scopes) == 0 || len(scopes) > maxScopes {
		return needs{}, fmt.Sprintf("has %s with %d scopes; 1 to %d are allowed", field, len(scopes), maxScopes)
	}
	for index, scope := range scopes {
		if problem := wrongScope(field, scope, catalogue); problem != "" {
			return needs{}, problem
		}
		if slices.Contains(scopes[:index], scope) {
			return needs{}, fmt.Sprintf("has in %s the scope %q twice; keep one", field, scope)
		}
	}
	return needs{call: call, scopes: scopes}, ""
}

// maxScopes is the largest number of scopes of all_of and any_of.
const maxScopes = 16

// wrongScope returns what is wrong with a scope; "" for nothing.
func wrongScope(field, scope string, catalogue *policy.Policy) string {
	if !policy.ValidScopeName(scope) {
		return fmt.Sprintf("has the scope %q, which is malformed; the form is resource:action, each of a-z, 0-9 and _", scope)
	}
	if catalogue != nil && !catalogue.HasScope(scope) {
		return "has a scope in " + field + " that does not exist: " + policy.UnknownScope(scope, catalogue.Scopes(), "the policy file")
	}
	return ""
}

// readAccess returns the requirement of an annotation, or what is wrong with it.
func readAccess(access *keysvcv1.Access, catalogue *policy.Policy) (demanded needs, problem string) {
	switch requirement := access.GetRequirement().(type) {
	case *keysvcv1.Access_RequiredScope:
		scope := requirement.RequiredScope
		if problem := wrongScope("required_scope", scope, catalogue); problem != "" {
			return needs{}, problem
		}
		return needs{call: "Scope", scopes: []string{scope}}, ""
	case *keysvcv1.Access_AllOf:
		return readScopes("AllOf", "all_of", requirement.AllOf.GetScopes(), catalogue)
	case *keysvcv1.Access_AnyOf:
		return readScopes("AnyOf", "any_of", requirement.AnyOf.GetScopes(), catalogue)
	case *keysvcv1.Access_IdentityOnly:
		if requirement.IdentityOnly {
			return needs{call: "IdentityOnly"}, ""
		}
		return needs{}, "has identity_only: false, which says nothing; give a required_scope instead"
	case *keysvcv1.Access_Public:
		if requirement.Public {
			return needs{call: "Public"}, ""
		}
		return needs{}, "has public: false, which says nothing; give a required_scope instead"
	}
	return needs{}, isEmpty
}

// at returns an error that begins with the file and the line of a declaration.
func at(declared protoreflect.Descriptor, format string, arguments ...any) error {
	location := declared.ParentFile().SourceLocations().ByDescriptor(declared)
	return fmt.Errorf("%s:%d: %s", declared.ParentFile().Path(), location.StartLine+1, fmt.Sprintf(format, arguments...))
}

// write writes the generated file of a proto file. A name that is taken gets an underscore at
// its end.
func write(plugin *protogen.Plugin, file *protogen.File, tables []table, taken names) {
	out := plugin.NewGeneratedFile(file.GeneratedFilenamePrefix+fileSuffix, file.GoImportPath)
	out.P("// Code generated by protoc-gen-go-keyscope. DO NOT EDIT.")
	out.P("// source: ", file.Desc.Path())
	out.P()
	out.P("package ", file.GoPackageName)
	for _, table := range tables {
		access, newGuard := taken.pick(table.service.GoName+"Access"), taken.pick("New"+table.service.GoName+"Guard")
		full := table.service.Desc.FullName()
		keyauth := func(ident string) string { return out.QualifiedGoIdent(keyauthPackage.Ident(ident)) }
		out.P()
		out.P("// ", access, " returns what each method of ", full)
		out.P("// needs of the API key that it is called with.")
		out.P("func ", access, "() ", keyauth("Table"), " {")
		out.P("return ", keyauth("Table"), "{")
		for _, row := range table.rows {
			quoted := make([]string, len(row.scopes))
			for index, scope := range row.scopes {
				quoted[index] = strconv.Quote(scope)
			}
			needs := keyauth(row.call) + "(" + strings.Join(quoted, ", ") + ")"
			if row.field != "" {
				needs += fmt.Sprintf(".WorkspaceField(%q)", row.field)
			}
			out.P(fmt.Sprintf("%q: %s,", fmt.Sprintf("/%s/%s", full, row.method.Desc.Name()), needs))
		}
		out.P("}")
		out.P("}")
		out.P()
		out.P("// ", newGuard, " returns a Guard for a server of ", full, ".")
		out.P("// Install its interceptors. A server of several services adds the tables of the other")
		out.P("// services to config.")
		out.P("func ", newGuard, "(validator ", keyauth("Validator"), ", config ", keyauth("Config"), ") (*", keyauth("Guard"), ", error) {")
		out.P("config.Tables = append([]", keyauth("Table"), "{", access, "()}, config.Tables...)")
		out.P("return ", keyauth("NewGuard"), "(validator, config)")
		out.P("}")
	}
}
