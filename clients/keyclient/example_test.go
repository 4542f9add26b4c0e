package keyclient_test

import (
	"context"
	"fmt"

	"github.com/scribe-mail/keysvc/clients/keyclient"
	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func ExampleNew() {
	_, err := keyclient.New("keysvc.internal:7480", keyclient.Config{AllowPlaintext: true})
	fmt.Println(err)
	// Output: keyclient: AllowPlaintext: keysvc.internal:7480 can be on another machine; allowed are loopback addresses, localhost and unix sockets; set TransportCredentials for others
}

func ExampleFromEnvironment() {
	client, err := keyclient.FromEnvironment(keyclient.Config{AllowPlaintext: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close()
	// The product's backend revokes a key; here without waiting for the answer.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = client.Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: "9fQ2mXc7Lr0TzB4w"})
	fmt.Println(err)
	// Output: rpc error: code = Canceled desc = context canceled
}
