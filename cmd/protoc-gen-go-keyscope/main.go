// Command protoc-gen-go-keyscope is a plugin of buf and protoc. For each service it generates
// a table of what each method requires of the API key that it is called with. The requirements come
// from the annotations of keysvc/v1/access.proto; a method without an annotation is an error.
//
// Pin it in the module that uses it:
//
//	go get -tool github.com/scribe-mail/keysvc/cmd/protoc-gen-go-keyscope
//
// With buf, in buf.gen.yaml:
//
//	plugins:
//	  - local: ["go", "tool", "protoc-gen-go-keyscope"]
//	    out: gen
//	    opt: [paths=source_relative, policy=policy.yaml]
//
// With protoc:
//
//	protoc -I proto -I "$(go list -m -f '{{.Dir}}' github.com/scribe-mail/keysvc)/proto" \
//	    --go-keyscope_out=gen --go-keyscope_opt=paths=source_relative …
//
// For a service Notes it declares NotesAccess and NewNotesGuard. If the package has a message
// with one of these names, an underscore is added: NotesAccess_, NewNotesGuard_.
//
// Options are those of protoc-gen-go, and policy=FILE, a policy of keysvc in YAML: a scope that
// the policy does not have is an error. Without policy, every well-formed scope is accepted.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"

	gengo "google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"

	"github.com/scribe-mail/keysvc/internal/keyscope"
	"github.com/scribe-mail/keysvc/internal/policy"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "protoc-gen-go-keyscope:", err)
		os.Exit(1)
	}
}

// run answers one request. Mistakes in the proto files are part of the answer; run returns an
// error if it cannot read the request or write the answer.
func run(in io.Reader, out io.Writer) error {
	if len(os.Args) > 1 {
		return fmt.Errorf("unknown argument %q: this is a plugin, which buf or protoc runs", os.Args[1])
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	request, err := keyscope.ParseRequest(text)
	if err != nil {
		return err
	}
	var flags flag.FlagSet
	file := flags.String("policy", "", "a policy in YAML; scopes that it does not have are errors")
	plugin, err := protogen.Options{ParamFunc: flags.Set}.New(request)
	if err != nil {
		return err
	}
	// The plugin accepts the editions that protoc-gen-go accepts.
	plugin.SupportedFeatures = gengo.SupportedFeatures
	plugin.SupportedEditionsMinimum = gengo.SupportedEditionsMinimum
	plugin.SupportedEditionsMaximum = gengo.SupportedEditionsMaximum
	if err := generate(plugin, *file); err != nil {
		plugin.Error(err)
	}
	answer, err := proto.Marshal(plugin.Response())
	if err != nil {
		return err
	}
	_, err = out.Write(answer)
	return err
}

func generate(plugin *protogen.Plugin, policyFile string) error {
	var catalogue *policy.Policy
	if policyFile != "" {
		text, err := os.ReadFile(policyFile)
		if err != nil {
			return fmt.Errorf("policy: %w", err)
		}
		if catalogue, err = policy.Parse(policyFile, text); err != nil {
			return fmt.Errorf("policy: %w", err)
		}
	}
	return keyscope.Generate(plugin, catalogue)
}
