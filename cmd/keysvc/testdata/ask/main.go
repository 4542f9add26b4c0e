// Command ask asks a keysvc about texts with the Go client, as a service does. It uses only what older
// versions of the client have, so that TestServersBeforeClients can build it with an older one.
//
//	ask ADDRESS plain|near <texts, a line each
//
// It writes a line for each text: the decision, or the code of the error.
package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
)

func main() {
	client, err := keyclient.New(os.Args[1], keyclient.Config{AllowPlaintext: true, WithoutNearCache: os.Args[2] != "near", ValidationTimeout: 20 * time.Second})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer client.Close() //nolint:errcheck // the process ends
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		answer, err := client.Validate(context.Background(), keyauth.Question{Token: lines.Text(), Requirement: keyauth.IdentityOnly()})
		if err != nil {
			fmt.Println(status.Code(err))
			continue
		}
		fmt.Println(answer.Decision)
	}
}
