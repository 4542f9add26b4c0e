package keyscope_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

var update = flag.Bool("update", false, "write the generated text to testdata")

// root is the root of the repository, relative to this package.
const root = "../.."

// generate runs buf with the built plugin over a folder of testdata. It returns the folder
// with the generated files, and what buf printed.
func generate(t *testing.T, folder, options string) (out, printed string, err error) {
	t.Helper()
	workspace, out := t.TempDir(), t.TempDir()
	for from, to := range map[string]string{filepath.Join("testdata", folder): "things", root + "/proto": "keysvc"} {
		if err := os.CopyFS(filepath.Join(workspace, to), os.DirFS(from)); err != nil {
			t.Fatal(err)
		}
	}
	config := "version: v2\nmodules:\n  - path: things\n  - path: keysvc\n"
	if err := os.WriteFile(filepath.Join(workspace, "buf.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	template := fmt.Sprintf(`{"version":"v2","plugins":[{"local":%q,"out":%q,"opt":[%s]}]}`, plugin, out, options)
	command := exec.CommandContext(t.Context(), buf, "generate", filepath.Join(workspace, "things"), "--template", template)
	text, err := command.CombinedOutput()
	return out, string(text), err
}

// plugin is the path of the built plugin, and buf that of buf. TestMain sets them.
var plugin, buf string

// TestMain builds the plugin and finds buf, once for all tests.
func TestMain(m *testing.M) {
	flag.Parse()
	folder, err := os.MkdirTemp("", "keyscope")
	if err != nil {
		panic(err)
	}
	plugin = filepath.Join(folder, "protoc-gen-go-keyscope")
	if text, err := exec.Command("go", "build", "-o", plugin, root+"/cmd/protoc-gen-go-keyscope").CombinedOutput(); err != nil {
		panic(fmt.Sprintf("building the plugin: %v\n%s", err, text))
	}
	// With -n, go builds the tool if it must, and prints where it is.
	path, err := exec.Command("go", "tool", "-modfile="+root+"/tools/go.mod", "-n", "buf").Output()
	if err != nil {
		panic(fmt.Sprintf("looking for buf: %v", err))
	}
	buf = strings.TrimSpace(string(path))
	status := m.Run()
	_ = os.RemoveAll(folder)
	os.Exit(status)
}

// golden compares a text with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run the test with -update and look at the difference. Got:\n%s", path, got)
	}
}

func TestGenerateWritesTheTableOfEachService(t *testing.T) {
	policy, err := filepath.Abs("testdata/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, options := range []string{`"paths=source_relative"`, `"paths=source_relative","policy=` + policy + `"`} {
		out, printed, err := generate(t, "good", options)
		if err != nil {
			t.Fatalf("%v\n%s", err, printed)
		}
		text, err := os.ReadFile(filepath.Join(out, "things_keyscope.pb.go"))
		if err != nil {
			t.Fatal(err)
		}
		if formatted, err := format.Source(text); err != nil || string(formatted) != string(text) {
			t.Errorf("the generated file is not formatted as by gofmt: %v", err)
		}
		golden(t, "things_keyscope.pb.go.golden", string(text))
	}
}

func TestGenerateReportsEveryMistakeAndWritesNothing(t *testing.T) {
	policy, err := filepath.Abs("testdata/policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]string{"bad.golden": "", "bad_policy.golden": `"policy=` + policy + `"`} {
		out, printed, err := generate(t, "bad", options)
		if err == nil {
			t.Fatalf("%s: no error", name)
		}
		_, problems, _ := strings.Cut(printed, "bad.proto")
		golden(t, name, "bad.proto"+problems)
		if files, _ := os.ReadDir(out); len(files) != 0 {
			t.Errorf("%s: something was generated nevertheless", name)
		}
	}
}

// TestGenerateRefusesAnAnnotationThatIsGivenTwice gives the plugin what protoc writes for two
// option statements, each with another field: two values of the annotation. A reader that
// merges them sees the last value only.
func TestGenerateRefusesAnAnnotationThatIsGivenTwice(t *testing.T) {
	scope := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "signatures:read")
	public := protowire.AppendVarint(protowire.AppendTag(nil, 3, protowire.VarintType), 1)
	const number = 50780
	said := func(values ...[]byte) (options []byte) {
		for _, value := range values {
			options = protowire.AppendBytes(protowire.AppendTag(options, number, protowire.BytesType), value)
		}
		return options
	}
	for name, test := range map[string]struct {
		method, service []byte
		problem         string
	}{
		"once":             {method: said(scope)},
		"in pieces":        {method: said(nil, scope)},
		"two statements":   {method: said(scope, public), problem: "things.proto:1: method things.v1.Things.Get: option (keysvc.v1.access) sets more than one of required_scope, identity_only, public, all_of and any_of; keep one"},
		"one value":        {method: said(slices.Concat(scope, public)), problem: "more than one"},
		"the same twice":   {method: said(scope, scope), problem: "more than one"},
		"of the service":   {service: said(scope, public), problem: "service things.v1.Things: option (keysvc.v1.default_access) sets more than one"},
		"a newer field":    {method: said(slices.Concat(scope, protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1))), problem: "more than one"},
		"another type":     {method: said(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1)), problem: "cannot be read"},
		"a field too new":  {method: said(protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1)), problem: "cannot be read"},
		"a broken message": {method: said([]byte{0xff}), problem: "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			method, service := &descriptorpb.MethodOptions{}, &descriptorpb.ServiceOptions{}
			method.ProtoReflect().SetUnknown(test.method)
			service.ProtoReflect().SetUnknown(test.service)
			request, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
				FileToGenerate: []string{"things.proto"},
				Parameter:      proto.String("paths=source_relative"),
				ProtoFile: []*descriptorpb.FileDescriptorProto{{
					Name: proto.String("things.proto"), Package: proto.String("things.v1"), Syntax: proto.String("proto3"),
					Options:     &descriptorpb.FileOptions{GoPackage: proto.String("example.com/things/v1;thingsv1")},
					MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("Thing")}},
					Service: []*descriptorpb.ServiceDescriptorProto{{
						Name: proto.String("Things"), Options: service,
						Method: []*descriptorpb.MethodDescriptorProto{{
							Name: proto.String("Get"), InputType: proto.String(".things.v1.Thing"), OutputType: proto.String(".things.v1.Thing"), Options: method,
						}},
					}},
				}},
			})
			if err != nil {
				t.Fatal(err)
			}
			command := exec.CommandContext(t.Context(), plugin)
			command.Stdin = bytes.NewReader(request)
			text, err := command.Output()
			if err != nil {
				t.Fatal(err)
			}
			var response pluginpb.CodeGeneratorResponse
			if err := proto.Unmarshal(text, &response); err != nil {
				t.Fatal(err)
			}
			if test.problem == "" {
				if response.Error != nil || !strings.Contains(response.GetFile()[0].GetContent(), `keyauth.Scope("signatures:read")`) {
					t.Errorf("got %v", &response)
				}
				return
			}
			if !strings.Contains(response.GetError(), test.problem) || len(response.GetFile()) != 0 {
				t.Errorf("got %v, want an error with %q and no file", &response, test.problem)
			}
		})
	}
}

func TestGenerateReportsAPolicyThatCannotBeRead(t *testing.T) {
	for _, policy := range []string{"does-not-exist.yaml", "keyscope_test.go"} {
		path, err := filepath.Abs(policy)
		if err != nil {
			t.Fatal(err)
		}
		if _, printed, err := generate(t, "good", `"policy=`+path+`"`); err == nil || !strings.Contains(printed, policy) {
			t.Errorf("policy=%s: %v\n%s", policy, err, printed)
		}
	}
}

// TestBufRefusesAnAnnotationThatIsGivenTwice runs buf over the statements of
// TestGenerateRefusesAnAnnotationThatIsGivenTwice.
func TestBufRefusesAnAnnotationThatIsGivenTwice(t *testing.T) {
	out, printed, err := generate(t, "twice", "")
	if err == nil || !strings.Contains(printed, "bad.proto:1") {
		t.Errorf("%v\n%s", err, printed)
	}
	t.Log(printed)
	if files, _ := os.ReadDir(out); len(files) != 0 {
		t.Error("something was generated")
	}
}
