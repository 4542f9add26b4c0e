package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	_ "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// TestPageHasEveryDefinitionWithItsComment compares docs/api.md with the API that is linked in, which has no
// comments. `make fresh` compares the comments as well.
func TestPageHasEveryDefinitionWithItsComment(t *testing.T) {
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	sections := make(map[string]string)
	for _, section := range regexp.MustCompile(`(?m)^##+ `).Split(string(text), -1) {
		title, body, _ := strings.Cut(section, "\n")
		if _, taken := sections[title]; taken {
			t.Errorf("two headings are %q", title)
		}
		sections[title] = body
	}
	check := func(title string, parts ...protoreflect.Name) {
		t.Helper()
		body, ok := sections[title]
		if !ok {
			t.Errorf("docs/api.md has no section %s; run make generate", title)
		}
		for _, part := range parts {
			row := regexp.MustCompile("(?m)^\\| `" + string(part) + "` \\|.*\\| [^|]*[^| ][^|]* \\|$")
			if !row.MatchString(body) {
				t.Errorf("docs/api.md: %s has no row with a comment for %s; run make generate", title, part)
			}
		}
	}
	r, err := newReference(protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	for _, service := range r.services {
		check(string(service.Name()))
		for i := range service.Methods().Len() {
			check(string(service.Name()) + "." + string(service.Methods().Get(i).Name()))
		}
	}
	for name, message := range r.messages {
		var fields []protoreflect.Name
		for i := range message.Fields().Len() {
			fields = append(fields, message.Fields().Get(i).Name())
		}
		check(string(name), fields...)
	}
	for name, enum := range r.enums {
		var values []protoreflect.Name
		for i := range enum.Values().Len() {
			values = append(values, enum.Values().Get(i).Name())
		}
		check(string(name), values...)
	}
	for _, extension := range r.extensions {
		check(string(extension.FullName()))
	}
}

// TestCommentsBecomeMarkdown makes a page from a file with each kind of comment.
func TestCommentsBecomeMarkdown(t *testing.T) {
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{{
		Name: proto.String("a.proto"), Package: proto.String(apiPackage), Syntax: proto.String("proto3"),
		Service: []*descriptorpb.ServiceDescriptorProto{{
			Name: proto.String("KeyService"),
			Method: []*descriptorpb.MethodDescriptorProto{{
				Name: proto.String("GetKey"), InputType: proto.String(".keysvc.v1.GetKeyRequest"),
				OutputType: proto.String(".keysvc.v1.GetKeyRequest"), ServerStreaming: proto.Bool(true),
			}},
		}},
		MessageType: []*descriptorpb.DescriptorProto{{
			Name: proto.String("GetKeyRequest"),
			Field: []*descriptorpb.FieldDescriptorProto{{
				Name: proto.String("token"), Number: proto.Int32(3), Label: descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum(),
				Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum(), JsonName: proto.String("token"),
				Options: &descriptorpb.FieldOptions{DebugRedact: proto.Bool(true)},
			}},
		}},
		SourceCodeInfo: &descriptorpb.SourceCodeInfo{Location: []*descriptorpb.SourceCodeInfo_Location{
			comments(" Keys.\n\n - one\n - two\n\n     code <a>\n", 6, 0),
			comments(" See GetKeyRequest.token of KeyService\n and `a <b>`.\n", 6, 0, 2, 0),
			comments(" Of [a-z] or\n request_id | _x_.\n\n Never.\n", 4, 0, 2, 0),
			comments(" Asks.\n", 4, 0),
		}},
	}}}
	encoded, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "set.binpb")
	if err := os.WriteFile(file, encoded, 0o600); err != nil {
		t.Fatal(err)
	}
	var page bytes.Buffer
	if err := run([]string{file}, &page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"## KeyService\n\nKeys.\n\n- one\n- two\n\n    code <a>\n",
		"### KeyService.GetKey\n\nGetKey([GetKeyRequest](#getkeyrequest)) returns (stream of [GetKeyRequest](#getkeyrequest)). Right: `read`.\n\n" +
			"See [GetKeyRequest.token](#getkeyrequest) of KeyService\nand `a <b>`.\n",
		"#### GetKeyRequest\n\nAsks.\n\n| field | type | no. | |\n|---|---|---|---|\n" +
			"| `token` | repeated string | 3 | *Secret.* Of \\[a-z\\] or `request_id` \\| \\_x\\_.<br>Never. |\n",
	} {
		if !strings.Contains(page.String(), want) {
			t.Errorf("the page lacks\n%s\nIt is\n%s", want, page.String())
		}
	}
	if _, err := newReference(new(protoregistry.Files)); err == nil {
		t.Error("files without the API are no error")
	}
	if _, err := protodesc.NewFiles(set); err != nil {
		t.Error(err)
	}
}

func comments(text string, path ...int32) *descriptorpb.SourceCodeInfo_Location {
	return &descriptorpb.SourceCodeInfo_Location{Path: path, Span: []int32{0, 0, 0}, LeadingComments: &text}
}
