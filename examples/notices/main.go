// Command notices is an example: it receives the notices that keys end soon, which keysvc sends with
// --notice-webhook, and mails them to the members whose keys they are. It uses the standard library alone.
//
//	notices -listen 127.0.0.1:8787 -secret notice-secret -smtp localhost:25 -members members.csv
//	keysvc serve … --notice-webhook http://127.0.0.1:8787/keysvc --notice-secret notice-secret
//
// The addresses come from a CSV file with the columns workspace, member and address. A product looks them
// up in its own directory.
package main

import (
	"encoding/csv"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/mail"
	"os"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8787", "the address to listen on")
	secretFile := flag.String("secret", "notice-secret", "the file with the secret")
	server := flag.String("smtp", "localhost:25", "the SMTP server")
	from := flag.String("from", "keys@localhost", "the sender of mails")
	members := flag.String("members", "members.csv", "the file with workspace, member, address")
	manage := flag.String("manage", "https://app.example/settings/keys", "where members rotate their keys")
	flag.Parse()
	if err := run(*listen, *secretFile, &Mailer{
		Server: *server, From: mail.Address{Name: "API keys", Address: *from}, AddressOf: addressesIn(*members), ManageURL: *manage,
	}); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(listen, secretFile string, mailer *Mailer) error {
	text, err := os.ReadFile(secretFile)
	if err != nil {
		return err
	}
	secret, err := ParseSecret(string(text))
	if err != nil {
		return err
	}
	receiver := &Receiver{Secret: secret, Handle: mailer.Handle, Log: slog.Default(), Now: time.Now}
	web := &http.Server{Addr: listen, Handler: receiver, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	return web.ListenAndServe()
}

// addressesIn returns a function that looks up addresses in a CSV file, which it reads each time.
func addressesIn(path string) func(workspaceID, memberID string) (string, error) {
	return func(workspaceID, memberID string) (string, error) {
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer func() { _ = file.Close() }() // it was only read
		rows, err := csv.NewReader(file).ReadAll()
		if err != nil {
			return "", err
		}
		for _, row := range rows {
			if len(row) >= 3 && row[0] == workspaceID && row[1] == memberID {
				return row[2], nil
			}
		}
		return "", nil
	}
}
