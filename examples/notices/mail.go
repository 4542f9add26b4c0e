package main

import (
	"fmt"
	"mime"
	"net/mail"
	"net/smtp"
	"strings"
	"time"
)

// Mailer mails notices to the members whose keys end.
type Mailer struct {
	// Server is the SMTP server, host:port. Auth is nil for a server that needs no password. smtp.SendMail
	// uses TLS if the server offers it, and sends a password over TLS or to localhost only.
	Server string
	Auth   smtp.Auth
	// From is the sender.
	From mail.Address
	// AddressOf returns the address of a member. keysvc knows ids and no addresses, so the product looks
	// it up. An empty address means that nobody is told.
	AddressOf func(workspaceID, memberID string) (string, error)
	// ManageURL is where a member rotates keys.
	ManageURL string
}

// Handle mails a notice. The notice of a suspended member's key, or of a key that nobody uses, is worth a mail
// only shortly before the end.
func (m *Mailer) Handle(notice Notice) error {
	if (notice.State == "suspended" || !notice.InUse) && notice.Days > 7 {
		return nil
	}
	found, err := m.AddressOf(notice.WorkspaceID, notice.MemberID)
	if err != nil || found == "" {
		return err
	}
	to, err := mail.ParseAddress(found)
	if err != nil {
		return fmt.Errorf("the address of member %s: %w", notice.MemberID, err)
	}
	return smtp.SendMail(m.Server, m.Auth, m.From.Address, []string{to.Address}, m.text(*to, notice))
}

// text returns the mail. The name of a key is what a member has typed, so it is encoded for the header.
func (m *Mailer) text(to mail.Address, notice Notice) []byte {
	subject := fmt.Sprintf("Your API key %q ends on %s", notice.KeyName, notice.ExpireTime.UTC().Format("2 January 2006"))
	used := "It was never used."
	if notice.LastUsedTime != nil {
		used = "It was last used on " + notice.LastUsedTime.UTC().Format("2 January 2006") + "."
	}
	lines := []string{
		"From: " + m.From.String(),
		"To: " + to.String(),
		"Subject: " + mime.QEncoding.Encode("utf-8", subject),
		"Date: " + time.Now().Format(time.RFC1123Z),
		"MIME-Version: 1.0",
		"Content-Type: text/plain; charset=utf-8",
		"Content-Transfer-Encoding: 8bit",
		"",
		subject + ", at " + notice.ExpireTime.UTC().Format("15:04") + " UTC.",
		"",
		used + " Programs that use it are refused from then on.",
		"Rotate it before, or let it end if nobody needs it: " + m.ManageURL,
		"",
		"Key " + notice.KeyID + " of workspace " + notice.WorkspaceID,
		"",
	}
	return []byte(strings.Join(lines, "\r\n"))
}
