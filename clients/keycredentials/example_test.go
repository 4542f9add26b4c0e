package keycredentials_test

import (
	"context"
	"fmt"
	"net/http"

	"google.golang.org/grpc"

	"github.com/scribe-mail/keysvc/clients/keycredentials"
)

func ExamplePerRPC() {
	token := keycredentials.PerRPC(keycredentials.File("/run/secrets/api-key"))
	option := grpc.WithPerRPCCredentials(token) // for grpc.NewClient, beside TLS
	fmt.Println(option != nil, token.RequireTransportSecurity())
	// Output: true true
}

func ExampleHTTP() {
	tripper, err := keycredentials.HTTP(nil, keycredentials.Environment("KEYSVC_TOKEN"), []string{"api.example.com"})
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: tripper}
	_, err = client.Get("https://elsewhere.example.com/")
	fmt.Println(err)
	// Output: Get "https://elsewhere.example.com/": keycredentials: elsewhere.example.com is not among the hosts that may get the token; nothing was sent
}

func ExampleSourceFunc() {
	// A client of a secret store goes here. It should keep what it has read.
	source := keycredentials.SourceFunc(func(context.Context) (string, error) { return "cut off,", nil })
	tripper, err := keycredentials.HTTP(nil, source, []string{"api.example.com"})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = (&http.Client{Transport: tripper}).Get("https://api.example.com/v1/signatures")
	fmt.Println(err)
	// Output: Get "https://api.example.com/v1/signatures": keycredentials: the token has a character at byte 3 that no token has; allowed are letters, digits and _ - . ~ + / =; nothing was sent
}
