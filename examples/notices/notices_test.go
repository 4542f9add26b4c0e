package main

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const secretText = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

var now = time.Unix(1614265330, 0)

// message is what keysvc sends.
const message = `{"type":"key.ending","timestamp":"2021-02-25T15:00:00Z","data":{"notice_id":"n","days":7,"in_use":true,"key_id":"9fQ2mXc7Lr0TzB4w",` +
	`"key_name":"nächtlich\r\nBcc: eve@example.com","workspace_id":"acme","member_id":"ann","state":"active","expire_time":"2021-03-04T15:00:00Z","last_used_time":"2021-02-24T03:00:07Z"}}`

// mailServer is an SMTP server that keeps what it is sent: the envelope and the text of each mail.
func mailServer(t *testing.T) (address string, mails <-chan string) {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan string, 10)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serveMail(conn, got)
		}
	}()
	t.Cleanup(func() { listener.Close(); <-done })
	return listener.Addr().String(), got
}

func serveMail(conn net.Conn, got chan<- string) {
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	reply := func(text string) { fmt.Fprint(conn, text+"\r\n") }
	reply("220 test")
	var text strings.Builder
	for lines.Scan() {
		switch verb, _, _ := strings.Cut(lines.Text(), " "); strings.ToUpper(verb) {
		case "DATA":
			reply("354 go on")
			for lines.Scan() && lines.Text() != "." {
				text.WriteString(lines.Text() + "\n")
			}
			got <- text.String()
			reply("250 ok")
		case "QUIT":
			reply("221 bye")
			return
		default:
			text.WriteString(lines.Text() + "\n")
			reply("250 ok")
		}
	}
}

// send sends a message to a receiver, signed with a secret, and returns the status.
func send(t *testing.T, url, id string, at time.Time, body string, change func(*http.Request)) int {
	t.Helper()
	secret, err := ParseSecret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%d.%s", id, at.Unix(), body)
	request.Header.Set("webhook-id", id)
	request.Header.Set("webhook-timestamp", fmt.Sprint(at.Unix()))
	request.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	if change != nil {
		change(request)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode
}

func TestNoticeIsMailedOnceToTheMember(t *testing.T) {
	smtpServer, mails := mailServer(t)
	members := filepath.Join(t.TempDir(), "members.csv")
	if err := os.WriteFile(members, []byte("acme,bob,bob@example.com\nacme,ann,Ann <ann@example.com>\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secret, err := ParseSecret(secretText + "\n")
	if err != nil {
		t.Fatal(err)
	}
	mailer := &Mailer{
		Server: smtpServer, From: mail.Address{Name: "API keys", Address: "keys@example.com"}, AddressOf: addressesIn(members), ManageURL: "https://app.example/keys",
	}
	server := httptest.NewServer(&Receiver{Secret: secret, Handle: mailer.Handle, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }})
	defer server.Close()
	for range 2 {
		if got := send(t, server.URL, "n1", now, message, nil); got != http.StatusNoContent {
			t.Errorf("status %d", got)
		}
	}
	text := <-mails
	_, rest, _ := strings.Cut(text, "From:") // behind the envelope
	parsed, err := mail.ReadMessage(strings.NewReader("From:" + rest))
	if err != nil || !strings.Contains(text, "RCPT TO:<ann@example.com>") || len(parsed.Header["Bcc"]) > 0 || parsed.Header.Get("To") != `"Ann" <ann@example.com>` ||
		!strings.Contains(text, "4 March 2021, at 15:00 UTC") || !strings.Contains(text, "last used on 24 February 2021") {
		t.Errorf("got %s, %v", text, err)
	}
	if len(mails) > 0 {
		t.Errorf("a repeated notice was mailed: %s", <-mails)
	}
	// Somebody whom the product does not know, and a key that nobody uses, make no mail.
	for id, body := range map[string]string{
		"n2": strings.Replace(message, `"ann"`, `"eve"`, 1),
		"n3": strings.NewReplacer(`"in_use":true`, `"in_use":false`, `"days":7`, `"days":30`).Replace(message),
	} {
		if got := send(t, server.URL, id, now, body, nil); got != http.StatusNoContent || len(mails) > 0 {
			t.Errorf("%s: status %d, %d mails", id, got, len(mails))
		}
	}
}

func TestWhatIsNotSignedIsRefused(t *testing.T) {
	secret, err := ParseSecret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	handled := 0
	fails := false
	server := httptest.NewServer(&Receiver{Secret: secret, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, Handle: func(Notice) error {
		handled++
		if fails {
			return io.ErrUnexpectedEOF
		}
		return nil
	}})
	defer server.Close()
	for name, change := range map[string]func(*http.Request){
		"another id":   func(r *http.Request) { r.Header.Set("webhook-id", "n9") },
		"another time": func(r *http.Request) { r.Header.Set("webhook-timestamp", fmt.Sprint(now.Unix()+1)) },
		"no signature": func(r *http.Request) { r.Header.Del("webhook-signature") },
		"another version": func(r *http.Request) {
			r.Header.Set("webhook-signature", strings.Replace(r.Header.Get("webhook-signature"), "v1,", "v2,", 1))
		},
		"another signature": func(r *http.Request) {
			r.Header.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(make([]byte, 32)))
		},
		"another body": func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2 },
	} {
		if got := send(t, server.URL, "n1", now, message, change); got != http.StatusUnauthorized {
			t.Errorf("%s: status %d", name, got)
		}
	}
	for _, at := range []time.Time{now.Add(-tolerance - time.Second), now.Add(tolerance + time.Second)} {
		if got := send(t, server.URL, "n1", at, message, nil); got != http.StatusUnauthorized {
			t.Errorf("of %s: status %d", at, got)
		}
	}
	if handled != 0 {
		t.Errorf("%d notices were handled", handled)
	}
	if got := send(t, server.URL, "n1", now, `{"type":"something.new"}`, nil); got != http.StatusNoContent || handled != 0 {
		t.Errorf("of another type: status %d", got)
	}
	// Two signatures, while the secret changes. What fails is sent again, and then handled.
	two := func(r *http.Request) { r.Header.Set("webhook-signature", "v1,AAAA "+r.Header.Get("webhook-signature")) }
	fails = true
	if got := send(t, server.URL, "n1", now, message, two); got != http.StatusServiceUnavailable {
		t.Errorf("status %d", got)
	}
	fails = false
	if got := send(t, server.URL, "n1", now, message, two); got != http.StatusNoContent || handled != 2 {
		t.Errorf("status %d, handled %d times", got, handled)
	}
}

// TestSignatureOfTheSpecification is the example of Standard Webhooks, with which keysvc is tested as well.
func TestSignatureOfTheSpecification(t *testing.T) {
	secret, err := ParseSecret(secretText)
	if err != nil {
		t.Fatal(err)
	}
	r := &Receiver{Secret: secret, Now: func() time.Time { return now }}
	if !r.isGenuine("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=", []byte(`{"test": 2432232314}`)) {
		t.Error("refused")
	}
}
