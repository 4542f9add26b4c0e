package callers_test

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// served asks a server for the names of all methods that it serves.
func served(t *testing.T) []string {
	t.Helper()
	store, err := boltstore.Open(filepath.Join(t.TempDir(), "keysvc.db"), boltstore.Config{Create: boltstore.CreateIfAbsent, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	settings := config.Defaults()
	settings.Channelz = true
	process, err := server.New(t.Context(), server.Config{Store: store, Settings: settings, Policy: policy.Default()})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- process.Serve(listener) }()
	t.Cleanup(func() {
		process.Stop(t.Context()) // over by now: cuts off what is left
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	connection, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	stream, err := grpc_reflection_v1.NewServerReflectionClient(connection).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpc_reflection_v1.ServerReflectionRequest{
		MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{},
	}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	var methods []string
	for _, service := range answer.GetListServicesResponse().GetService() {
		methods = append(methods, methodsOf(t, service.GetName())...)
	}
	return methods
}

// methodsOf returns the full names of a service's methods.
func methodsOf(t *testing.T, service string) []string {
	t.Helper()
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service))
	if err != nil {
		t.Fatalf("%s: %v", service, err)
	}
	descriptor, ok := found.(protoreflect.ServiceDescriptor)
	if !ok {
		t.Fatalf("%s is no service", service)
	}
	var methods []string
	for index := range descriptor.Methods().Len() {
		methods = append(methods, "/"+service+"/"+string(descriptor.Methods().Get(index).Name()))
	}
	return methods
}

// TestTableHasEveryServedMethod compares the table with the methods of the real server, both
// ways.
func TestTableHasEveryServedMethod(t *testing.T) {
	methods := served(t)
	for _, method := range methods {
		if callers.Needs(method) == access.Nobody {
			t.Errorf("%s is served and not in the table: nobody may call it", method)
		}
	}
	for _, method := range callers.Methods() {
		if !slices.Contains(methods, method) {
			t.Errorf("%s is in the table and not served", method)
		}
		found := callers.Of(method)
		if found.Work == callers.NoWork || (found.Work == callers.Probe || found.Work == callers.Watch) != (found.Needs == access.Anyone) {
			t.Errorf("%s is work of kind %s and needs %s: only what anyone may do is a probe", method, found.Work, found.Needs)
		}
	}
	if len(methods) < 25 {
		t.Errorf("the server serves %d methods: the test has lost sight of some", len(methods))
	}
}

// TestTableHasEveryMethodOfTheContract: services that are not registered are in the table, too.
func TestTableHasEveryMethodOfTheContract(t *testing.T) {
	protoregistry.GlobalFiles.RangeFilesByPackage("keysvc.v1", func(file protoreflect.FileDescriptor) bool {
		for index := range file.Services().Len() {
			for _, method := range methodsOf(t, string(file.Services().Get(index).FullName())) {
				if callers.Needs(method) == access.Nobody {
					t.Errorf("%s is not in the table", method)
				}
			}
		}
		return true
	})
}

// TestMethodsNeedTheRightOfTheContract repeats the part of the table in which a mistake would be
// expensive.
func TestMethodsNeedTheRightOfTheContract(t *testing.T) {
	const service = "/keysvc.v1."
	want := map[string]access.Right{
		service + "ValidationService/ValidateKey":       access.Validate,
		service + "ValidationService/BatchValidateKeys": access.Validate,
		service + "KeyService/CreateKey":                access.Issue,
		service + "KeyService/GetKey":                   access.Read,
		service + "KeyService/ListKeys":                 access.Read,
		service + "KeyService/UpdateKey":                access.Issue,
		service + "KeyService/RotateKey":                access.Issue,
		service + "KeyService/FinishRotation":           access.Revoke,
		service + "KeyService/RevokeKey":                access.Revoke,
		service + "KeyService/RevokeToken":              access.Report,
		service + "KeyService/ListNotices":              access.Read,
		service + "KeyService/ImportKeys":               access.IssueLocal,
		service + "KeyService/ReleaseKeys":              access.Administer,
		service + "MemberService/PutMember":             access.Directory,
		service + "MemberService/GetMember":             access.Read,
		service + "MemberService/ListMembers":           access.Read,
		service + "MemberService/ListWorkspaces":        access.Read,
		service + "MemberService/RemoveMember":          access.Directory,
		service + "MemberService/RemoveWorkspace":       access.Administer,
		service + "PolicyService/GetPolicy":             access.Known,
		service + "PolicyService/ApplyPolicy":           access.Administer,
		service + "SettingsService/GetSettings":         access.Known,
		service + "SettingsService/SetStaleness":        access.Administer,
		service + "SettingsService/FinishUpgrade":       access.Administer,
		service + "AuditService/ListAuditEvents":        access.Audit,
		service + "AuditService/ExplainKey":             access.Audit,
		service + "BackupService/Backup":                access.Administer,
		service + "SyncService/Sync":                    access.Validate,
		service + "SyncService/AwaitRevision":           access.Known,
		service + "CallerService/WhoAmI":                access.Known,
		service + "StatusService/GetStatus":             access.Known,
	}
	for method, right := range want {
		if got := callers.Needs(method); got != right {
			t.Errorf("%s: got %s, want %s", method, got, right)
		}
	}
	for _, method := range callers.Methods() {
		need := callers.Needs(method)
		// Only health is open to everybody.
		if health := strings.HasPrefix(method, "/grpc.health.v1.Health/"); health != (need == access.Anyone) {
			t.Errorf("%s needs %s", method, need)
		}
		// Tools for operators neither change nor decide anything.
		tool := strings.HasPrefix(method, "/grpc.reflection.") || strings.HasPrefix(method, "/grpc.channelz.")
		if tool && need != access.Known {
			t.Errorf("%s needs %s", method, need)
		}
	}
}

func TestUnknownMethodsNeedNobody(t *testing.T) {
	for _, method := range []string{
		"", "/", "*",
		"/keysvc.v1.ValidationService/",
		"/keysvc.v1.ValidationService/Validate",
		"/keysvc.v1.ValidationService/validatekey",
		"keysvc.v1.ValidationService/ValidateKey",
		"/keysvc.v1.ValidationService/ValidateKey/",
		"//keysvc.v1.ValidationService/ValidateKey",
		"/keysvc.v2.ValidationService/ValidateKey",
		"/grpc.health.v1.Health/Check ",
	} {
		if got := callers.Needs(method); got != access.Nobody {
			t.Errorf("%q needs %s", method, got)
		}
		if callers.Local().May(callers.Needs(method)) {
			t.Errorf("local may call %q", method)
		}
	}
}

func TestIdentityMayDoOnlyWhatItHas(t *testing.T) {
	var unknown *callers.Identity
	named := &callers.Identity{Name: "local"} // a name is no right
	for _, method := range callers.Methods() {
		needs := callers.Needs(method)
		open := needs == access.Anyone
		if unknown.May(needs) != open || named.May(needs) != open {
			t.Errorf("somebody without rights may call %s: %t, %t", method, unknown.May(needs), named.May(needs))
		}
		if !callers.Local().May(callers.Needs(method)) {
			t.Errorf("local may not call %s", method)
		}
	}
}

func TestContextCarriesTheIdentity(t *testing.T) {
	if got := callers.FromContext(t.Context()); got != nil {
		t.Errorf("without one: got %+v", got)
	}
	ctx := callers.NewContext(t.Context(), callers.Local())
	if got := callers.FromContext(ctx); got.CallerName() != "local" || !got.May(access.Read) {
		t.Errorf("got %+v", got)
	}
	ctx = callers.NewContext(ctx, &callers.Identity{Name: "other"})
	if got := callers.FromContext(ctx); got.CallerName() != "other" || got.May(access.Read) {
		t.Errorf("after another: got %+v", got)
	}
}
