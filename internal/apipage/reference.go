package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
)

// apiPackage is the package of the API. Other packages of the proto files, such as the stored records,
// are nobody's business outside.
const apiPackage = "keysvc.v1"

// first has the services that most readers look for. Those that are not named follow by their names.
var first = []protoreflect.Name{"ValidationService", "KeyService", "MemberService", "PolicyService", "SettingsService", "SyncService", "AuditService"}

// reference is what the page is made of. Everything has a name of its own within the package, and its
// heading is that name, so that links to it last.
type reference struct {
	services   []protoreflect.ServiceDescriptor
	messages   map[protoreflect.Name]protoreflect.MessageDescriptor
	enums      map[protoreflect.Name]protoreflect.EnumDescriptor
	extensions []protoreflect.ExtensionDescriptor
	// anchors has the anchors of what a comment may name: services, messages, enums, and SERVICE.CALL or
	// CALL alone.
	anchors map[string]string
	// shown has the messages that stand below their call.
	shown map[protoreflect.Name]bool
}

// newReference collects what the files have of the API. An error names what has no comment.
func newReference(files *protoregistry.Files) (*reference, error) {
	r := &reference{
		messages: make(map[protoreflect.Name]protoreflect.MessageDescriptor),
		enums:    make(map[protoreflect.Name]protoreflect.EnumDescriptor),
		anchors:  make(map[string]string),
		shown:    make(map[protoreflect.Name]bool),
	}
	files.RangeFilesByPackage(apiPackage, func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			r.services = append(r.services, file.Services().Get(i))
		}
		for i := range file.Messages().Len() {
			r.addMessage(file.Messages().Get(i))
		}
		for i := range file.Enums().Len() {
			r.addEnum(file.Enums().Get(i))
		}
		for i := range file.Extensions().Len() {
			r.extensions = append(r.extensions, file.Extensions().Get(i))
		}
		return true
	})
	if len(r.services) == 0 {
		return nil, fmt.Errorf("no services of %s were found", apiPackage)
	}
	slices.SortFunc(r.services, func(a, b protoreflect.ServiceDescriptor) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name(), b.Name()))
	})
	slices.SortFunc(r.extensions, func(a, b protoreflect.ExtensionDescriptor) int { return cmp.Compare(a.Number(), b.Number()) })
	for _, service := range r.services {
		r.anchors[string(service.Name())] = anchor(service.Name())
		for i := range service.Methods().Len() {
			method := service.Methods().Get(i)
			heading := string(service.Name()) + "." + string(method.Name())
			r.anchors[heading] = strings.ToLower(string(service.Name()) + string(method.Name()))
			r.anchors[string(method.Name())] = r.anchors[heading]
		}
	}
	return r, nil
}

// rank returns the place of a service among those of first.
func rank(service protoreflect.ServiceDescriptor) int {
	if at := slices.Index(first, service.Name()); at >= 0 {
		return at
	}
	return len(first)
}

func (r *reference) addMessage(message protoreflect.MessageDescriptor) {
	if message.IsMapEntry() {
		return
	}
	r.messages[message.Name()] = message
	r.anchors[string(message.Name())] = anchor(message.Name())
	for i := range message.Messages().Len() {
		r.addMessage(message.Messages().Get(i))
	}
	for i := range message.Enums().Len() {
		r.addEnum(message.Enums().Get(i))
	}
}

func (r *reference) addEnum(enum protoreflect.EnumDescriptor) {
	r.enums[enum.Name()] = enum
	r.anchors[string(enum.Name())] = anchor(enum.Name())
}

// anchor returns the anchor of a heading that is a name alone.
func anchor(name protoreflect.Name) string { return strings.ToLower(string(name)) }

const head = `# API

<!-- Made by make generate from proto/keysvc/v1. Do not edit. -->

Each service, call, message and enum of ` + "`keysvc.v1`" + `, with the comments of
[the proto files](../proto/keysvc/v1). The [README](../README.md#validating-in-a-service) says how a service
validates, [clients](clients.md) how a server is reached, and [upgrade](upgrade.md#the-api) how the API
changes.

- Each call says which [right](callers.md#rights) its callers need. Where the page says ` + "`issue`" + ` and the request
  has a digest, ` + "`issue_local`" + ` is the one that counts.
- A call that fails has a status of gRPC, and ` + "`google.rpc.ErrorInfo`" + ` with the domain ` + "`keysvc`" + ` and a reason of
  [ErrorReason](#errorreason). Any call may end with UNAUTHENTICATED or PERMISSION_DENIED because of its caller, with
  RESOURCE_EXHAUSTED because the server has too much to do, and with UNAVAILABLE.
- A field of a message that is not set has the zero value of its type. Where that is not the same as absent, the
  type says *optional*. *Secret* fields have something that must not be logged.
- An enum can get further values. A client that meets a value it does not know refuses.
`

// markdown returns the page.
func (r *reference) markdown() string {
	var page strings.Builder
	page.WriteString(head)
	page.WriteString("\n| service | calls |\n|---|---|\n")
	for _, service := range r.services {
		var calls []string
		for i := range service.Methods().Len() {
			name := service.Methods().Get(i).Name()
			calls = append(calls, fmt.Sprintf("[%s](#%s)", name, r.anchors[string(service.Name())+"."+string(name)]))
		}
		fmt.Fprintf(&page, "| [%s](#%s) | %s |\n", service.Name(), anchor(service.Name()), strings.Join(calls, ", "))
	}
	page.WriteString("\nFurther: [annotations](#annotations) for the services of a product, [messages](#messages), [enums](#enums).\n")
	for _, service := range r.services {
		r.service(&page, service)
	}
	page.WriteString("\n## Annotations\n\nOptions that the proto files of a product's own services have.\n")
	for _, extension := range r.extensions {
		fmt.Fprintf(&page, "\n### %s\n\nOption of a %s, %s, number %d.\n\n%s", extension.FullName(),
			strings.ToLower(strings.TrimSuffix(string(extension.ContainingMessage().Name()), "Options")), r.kind(extension), extension.Number(), r.prose(extension))
	}
	page.WriteString("\n## Messages\n\nMessages that are part of others. Requests and responses stand below their call.\n")
	for _, name := range slices.Sorted(maps.Keys(r.messages)) {
		if !r.shown[name] {
			r.message(&page, "###", r.messages[name])
		}
	}
	page.WriteString("\n## Enums\n")
	for _, name := range slices.Sorted(maps.Keys(r.enums)) {
		r.enum(&page, r.enums[name])
	}
	return page.String()
}

func (r *reference) service(page *strings.Builder, service protoreflect.ServiceDescriptor) {
	fmt.Fprintf(page, "\n## %s\n\n%s", service.Name(), r.prose(service))
	for i := range service.Methods().Len() {
		method := service.Methods().Get(i)
		fmt.Fprintf(page, "\n### %s.%s\n\n%s(%s%s) returns (%s%s). %s\n\n%s", service.Name(), method.Name(), method.Name(),
			stream(method.IsStreamingClient()), r.link(string(method.Input().Name())),
			stream(method.IsStreamingServer()), r.link(string(method.Output().Name())), right(method), r.prose(method))
		for _, message := range []protoreflect.MessageDescriptor{method.Input(), method.Output()} {
			if r.messages[message.Name()] != nil && !r.shown[message.Name()] {
				r.shown[message.Name()] = true
				r.message(page, "####", message)
			}
		}
	}
}

func stream(streaming bool) string {
	if streaming {
		return "stream of "
	}
	return ""
}

// right says who may call a method.
func right(method protoreflect.MethodDescriptor) string {
	needs := callers.Needs(fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name()))
	if needs == access.Anyone {
		return "Anyone may call it."
	}
	if needs == access.Known {
		return "Any known caller may call it."
	}
	return fmt.Sprintf("Right: `%s`.", needs)
}

func (r *reference) message(page *strings.Builder, level string, message protoreflect.MessageDescriptor) {
	fmt.Fprintf(page, "\n%s %s\n\n%s", level, message.Name(), r.prose(message))
	fields := message.Fields()
	if fields.Len() == 0 {
		return
	}
	page.WriteString("\n| field | type | no. | |\n|---|---|---|---|\n")
	for i := range fields.Len() {
		field := fields.Get(i)
		fmt.Fprintf(page, "| `%s` | %s | %d | %s%s |\n", field.Name(), r.kind(field), field.Number(), remarks(field), r.cell(field))
	}
}

func (r *reference) enum(page *strings.Builder, enum protoreflect.EnumDescriptor) {
	fmt.Fprintf(page, "\n### %s\n\n%s\n| value | no. | |\n|---|---|---|\n", enum.Name(), r.prose(enum))
	for i := range enum.Values().Len() {
		value := enum.Values().Get(i)
		fmt.Fprintf(page, "| `%s` | %d | %s |\n", value.Name(), value.Number(), r.cell(value))
	}
}
