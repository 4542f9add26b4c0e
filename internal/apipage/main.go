// Command apipage makes docs/api.md, the reference of the API, from the proto files: each service, call,
// message, field and enum with its comment. `make generate` runs it.
//
//	buf build proto --as-file-descriptor-set -o SET && go run ./internal/apipage SET
package main

import (
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(arguments []string, output io.Writer) error {
	if len(arguments) != 1 {
		return fmt.Errorf("usage: apipage SET, a file with a google.protobuf.FileDescriptorSet that has the comments")
	}
	encoded, err := os.ReadFile(arguments[0])
	if err != nil {
		return err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(encoded, &set); err != nil {
		return fmt.Errorf("%s: %w", arguments[0], err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return fmt.Errorf("%s: %w", arguments[0], err)
	}
	page, err := newReference(files)
	if err != nil {
		return err
	}
	_, err = io.WriteString(output, page.markdown())
	return err
}
