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
	"reflect"
	"time"

	"google.golang.org/grpc/status"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyclient"
)

func main() {
	config := keyclient.Config{AllowPlaintext: true, ValidationTimeout: 20 * time.Second}
	setNearCache(&config, os.Args[2] == "near")
	client, err := keyclient.New(os.Args[1], config)
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

// setNearCache turns the near-cache on or off. The field has one name in this version, and another one
// in older versions, where the near-cache is off by default.
func setNearCache(config *keyclient.Config, on bool) {
	fields := reflect.ValueOf(config).Elem()
	if field := fields.FieldByName("WithoutNearCache"); field.IsValid() {
		field.SetBool(!on)
		return
	}
	fields.FieldByName("NearCache").SetBool(on)
}
