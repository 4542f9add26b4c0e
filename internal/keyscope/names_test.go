package keyscope_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"slices"
	"strings"
	"testing"

	gengo "google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// identityOnly returns the annotation of a service, as a compiler writes it.
func identityOnly() *descriptorpb.ServiceOptions {
	options := &descriptorpb.ServiceOptions{}
	value := protowire.AppendVarint(protowire.AppendTag(nil, 2, protowire.VarintType), 1)
	options.ProtoReflect().SetUnknown(protowire.AppendBytes(protowire.AppendTag(nil, 50780, protowire.BytesType), value))
	return options
}

// notes returns a proto file of the package notes.v1 with the given messages and services.
func notes(name string, messages []*descriptorpb.DescriptorProto, services ...string) *descriptorpb.FileDescriptorProto {
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String(name), Package: proto.String("notes.v1"), Syntax: proto.String("proto3"),
		Options:     &descriptorpb.FileOptions{GoPackage: proto.String("example.com/notes/v1;notesv1")},
		MessageType: messages,
	}
	for _, service := range services {
		file.Service = append(file.Service, &descriptorpb.ServiceDescriptorProto{
			Name: proto.String(service), Options: identityOnly(),
			Method: []*descriptorpb.MethodDescriptorProto{{
				Name: proto.String("Get"), InputType: proto.String(".notes.v1.Note"), OutputType: proto.String(".notes.v1.Note"),
			}},
		})
	}
	return file
}

func message(name string, nested ...string) *descriptorpb.DescriptorProto {
	made := &descriptorpb.DescriptorProto{Name: proto.String(name)}
	for _, inner := range nested {
		made.NestedType = append(made.NestedType, &descriptorpb.DescriptorProto{Name: proto.String(inner)})
	}
	return made
}

// runPlugin returns the answer of the built plugin to a request.
func runPlugin(t *testing.T, request *pluginpb.CodeGeneratorRequest) *pluginpb.CodeGeneratorResponse {
	t.Helper()
	text, err := proto.Marshal(request)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), plugin)
	command.Stdin = bytes.NewReader(text)
	if text, err = command.Output(); err != nil {
		t.Fatal(err)
	}
	response := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(text, response); err != nil {
		t.Fatal(err)
	}
	return response
}

// declared returns the names at the top level of a Go file.
func declared(t *testing.T, name, text string) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, declaration := range file.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.Name != "init" {
				all = append(all, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					all = append(all, s.Name.Name)
				case *ast.ValueSpec:
					for _, name := range s.Names {
						all = append(all, name.Name)
					}
				}
			}
		}
	}
	return all
}

// TestGenerateAvoidsNamesOfProtocGenGo: the generated file is in one package with the code that
// protoc-gen-go generates from the same files.
func TestGenerateAvoidsNamesOfProtocGenGo(t *testing.T) {
	note := message("Note")
	for name, test := range map[string]struct {
		files []*descriptorpb.FileDescriptorProto
		want  []string
	}{
		"free": {
			files: []*descriptorpb.FileDescriptorProto{notes("a.proto", []*descriptorpb.DescriptorProto{note}, "Notes")},
			want:  []string{"NotesAccess", "NewNotesGuard"},
		},
		"a message": {
			files: []*descriptorpb.FileDescriptorProto{notes("a.proto", []*descriptorpb.DescriptorProto{note, message("NotesAccess"), message("NewNotesGuard")}, "Notes")},
			want:  []string{"NotesAccess_", "NewNotesGuard_"},
		},
		"a message of another file": {
			files: []*descriptorpb.FileDescriptorProto{
				notes("a.proto", []*descriptorpb.DescriptorProto{note}, "Notes"),
				notes("b.proto", []*descriptorpb.DescriptorProto{message("NotesAccess")}),
			},
			want: []string{"NotesAccess_", "NewNotesGuard"},
		},
		"a nested message": {
			files: []*descriptorpb.FileDescriptorProto{notes("a.proto", []*descriptorpb.DescriptorProto{note, message("NotesAccess"), message("X", "Y")}, "Notes", "X_Y")},
			want:  []string{"NotesAccess_", "NewNotesGuard", "X_YAccess", "NewX_YGuard"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			request := &pluginpb.CodeGeneratorRequest{Parameter: proto.String("paths=source_relative"), ProtoFile: test.files}
			for _, file := range test.files {
				request.FileToGenerate = append(request.FileToGenerate, file.GetName())
			}
			response := runPlugin(t, request)
			if response.Error != nil {
				t.Fatal(response.GetError())
			}
			var got []string
			for _, file := range response.GetFile() {
				got = append(got, declared(t, file.GetName(), file.GetContent())...)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("declared %v, want %v", got, test.want)
			}
			beside, err := protogen.Options{}.New(request)
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range beside.Files {
				gengo.GenerateFile(beside, file)
			}
			for _, file := range beside.Response().GetFile() {
				for _, name := range declared(t, file.GetName(), file.GetContent()) {
					if slices.Contains(got, name) {
						t.Errorf("%s is declared twice", name)
					}
				}
			}
		})
	}
}

func TestPluginAcceptsTheEditionsOfProtocGenGo(t *testing.T) {
	file := notes("a.proto", []*descriptorpb.DescriptorProto{message("Note")}, "Notes")
	file.Syntax, file.Edition = proto.String("editions"), gengo.SupportedEditionsMaximum.Enum()
	response := runPlugin(t, &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{"a.proto"}, Parameter: proto.String("paths=source_relative"),
		ProtoFile: []*descriptorpb.FileDescriptorProto{file},
	})
	if response.Error != nil || len(response.GetFile()) != 1 || !strings.Contains(response.GetFile()[0].GetContent(), "func NotesAccess()") {
		t.Errorf("edition %v: %v", file.GetEdition(), response)
	}
	if response.GetMinimumEdition() != int32(gengo.SupportedEditionsMinimum) || response.GetMaximumEdition() != int32(gengo.SupportedEditionsMaximum) ||
		response.GetSupportedFeatures() != gengo.SupportedFeatures {
		t.Errorf("editions %d to %d, features %b", response.GetMinimumEdition(), response.GetMaximumEdition(), response.GetSupportedFeatures())
	}
}
