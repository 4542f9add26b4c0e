package keyclient_test

import (
	"context"
	"expvar"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// A keysvc on another machine, which knows its callers by their certificates, and a Guard in front
// of the methods. The files may be replaced at any time.
func ExampleNew() {
	folder, err := certificates() // for this example; yours come from cert-manager, step-ca, …
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(folder)
	keysvc, err := keyclient.New("dns:///keysvc.internal", keyclient.Config{
		TLS: &keyclient.TLS{
			CAFile:   filepath.Join(folder, "ca.pem"),
			CertFile: filepath.Join(folder, "cert.pem"),
			KeyFile:  filepath.Join(folder, "key.pem"),
		},
		UserAgent: "signatures",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keysvc.Close()
	guard, err := keyauth.NewGuard(keysvc, keyauth.Config{Tables: []keyauth.Table{keyauth.Health()}})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := grpc.NewServer(
		grpc.ChainUnaryInterceptor(guard.UnaryServerInterceptor()),
		grpc.ChainStreamInterceptor(guard.StreamServerInterceptor()),
	)
	defer server.Stop()
	fmt.Println("ready to serve")
	// Output: ready to serve
}

// Plaintext stays on the machine.
func ExampleNew_plaintext() {
	_, err := keyclient.New("keysvc.internal", keyclient.Config{AllowPlaintext: true})
	fmt.Println(err)
	// Output:
	// keyclient: AllowPlaintext: dns:///keysvc.internal:7480 can be on another machine; allowed are loopback addresses, localhost and unix:///path; set TLS for others
}

// On a developer's machine: the keysvc that KEYSVC_ADDR names, 127.0.0.1:7480 without it.
func ExampleFromEnvironment() {
	keysvc, err := keyclient.FromEnvironment(keyclient.Config{AllowPlaintext: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keysvc.Close()
	fmt.Println("nothing is dialled before the first call")
	// Output: nothing is dialled before the first call
}

// Validate can be called without a Guard. Every answer but ALLOWED is a no.
func ExampleClient_Validate() {
	keysvc, err := keyclient.New("127.0.0.1:7480", keyclient.Config{AllowPlaintext: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keysvc.Close()
	answer, err := keysvc.Validate(context.Background(), keyauth.Question{
		// The checksum is wrong, so the token is refused without a call.
		Token:       "scribe_ksk1_9fQ2mXc7Lr0TzB4w_cut-off",
		Requirement: keyauth.Scope("signatures:read"),
	})
	switch {
	case err != nil:
		fmt.Println("no answer, so no 401 and no 403, and not allowed:", err)
	case answer.Decision != keysvcv1.Decision_DECISION_ALLOWED:
		fmt.Println("refused:", answer.Reason)
	default:
		fmt.Println("acts as", answer.Principal.MemberID, "in", answer.Principal.WorkspaceID)
	}
	// Output: refused: REASON_KEY_INVALID
}

// A near-cache whose state is among the variables of expvar.
func ExampleClient_NearCache() {
	var lag expvar.Float // the lag of the last change, in seconds
	keysvc, err := keyclient.New("127.0.0.1:7480", keyclient.Config{
		AllowPlaintext: true,
		NearCacheHooks: keyclient.NearCacheHooks{Invalidated: func(behind time.Duration) { lag.Set(behind.Seconds()) }},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer keysvc.Close()
	expvar.Publish("keysvc", expvar.Func(func() any { return keysvc.NearCache() }))
	fmt.Println("hits:", keysvc.NearCache().Hits)
	// Output: hits: 0
}
