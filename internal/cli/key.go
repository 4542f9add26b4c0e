package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

func (a *app) keyCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "key",
		Short:   "Create, look at and revoke keys",
		Example: `  keysvc key list --workspace acme`,
	},
		a.keyCreateCommand(),
		a.keyGetCommand(),
		a.keyListCommand(),
		a.keyRevokeCommand(),
	)
}

func (a *app) keyCreateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Create a key and print its token, this once",
		Long: `Create a key that acts as a member of a workspace, limited to scopes.

The token goes to standard output, alone on one line; the key and a warning go to
standard error. Nobody can show the token again.

` + jsonHelp + ` That includes the token.`,
		Example: `  keysvc key create --workspace acme --member ann --name deploy --scope signatures:read >token.txt
  keysvc key create --workspace acme --member ann --name report --scope emails:read,assets:read \
    --expires-in 90d --label team=web --allow-cidr 203.0.113.0/24`,
	}
	request := &keysvcv1.CreateKeyRequest{}
	var (
		scopes, cidrs commaList
		annotations   labels
		expiresIn     span
		expireTime    instant
	)
	flags := cmd.Flags()
	flags.StringVar(&request.WorkspaceId, "workspace", "", "the workspace that the key will belong to")
	flags.StringVar(&request.MemberId, "member", "", "the member whom the key will act as")
	flags.StringVar(&request.Name, "name", "", "what people call the key")
	flags.Var(&scopes, "scope", "a scope to grant, as in signatures:read; can be repeated, or several with commas")
	flags.Var(&expiresIn, "expires-in", "how long the key lives, as in 90d or 36h (default: a year, the longest there is)")
	flags.Var(&expireTime, "expire-time", "when the key expires, as in 2027-03-31T12:00:00Z")
	flags.Var(&annotations, "label", "an annotation; can be repeated")
	flags.Var(&cidrs, "allow-cidr", "a network that the key may be used from, as in 203.0.113.0/24; can be repeated (default: anywhere)")
	requestID := flags.String("request-id", "", "makes it safe to repeat the command: a second key with this id is refused")
	actor := actorFlag(cmd)
	required(cmd, "workspace", "member", "name", "scope")
	cmd.MarkFlagsMutuallyExclusive("expires-in", "expire-time")

	return a.clientCommand(cmd, func(ctx context.Context, s *session, _ []string) error {
		request.Scopes = scopes
		request.AllowedCidrs = cidrs
		request.Labels = annotations
		request.ExpireTime = timestamp(expireTime, s.Now(), expiresIn, +1)
		request.RequestId = optional(cmd, "request-id", requestID)
		request.ActorMemberId = optional(cmd, "actor", actor)
		response, err := s.keys.CreateKey(ctx, request)
		if err != nil {
			return err
		}
		return s.issued(response)
	})
}

// tokenResponse is a response that has a key and its new token.
type tokenResponse interface {
	proto.Message
	GetToken() string
	GetKey() *keysvcv1.Key
}

// issued shows a new token and its key. The token comes first: what fails after
// that loses nothing.
func (s *session) issued(response tokenResponse) error {
	key := response.GetKey()
	err := s.out.answer(response, func() error { return s.out.write([]byte(response.GetToken() + "\n")) })
	if err != nil {
		return fmt.Errorf("%w; the token is lost, so revoke the key: keysvc key revoke %s --workspace %s", err, key.GetKeyId(), key.GetWorkspaceId())
	}
	text := s.out.keyRecord(key) + "\nThe token is shown this once: keep it where secrets are kept. Nobody can show it again.\n"
	_, err = io.WriteString(s.Stderr, text)
	return err
}

func (a *app) keyGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "get KEY_ID",
		Short: "Show one key",
		Long: `Show one key, whatever its state. A token's key id is the 16 characters after ksk1_.

` + jsonHelp,
		Example: `  keysvc key get 9fQ2mXc7Lr0TzB4w --workspace acme`,
		Args:    positional("KEY_ID"),
	}
	workspace := cmd.Flags().String("workspace", "", "the key's workspace (default: any)")
	return a.clientCommand(cmd, func(ctx context.Context, s *session, args []string) error {
		response, err := s.keys.GetKey(ctx, &keysvcv1.GetKeyRequest{WorkspaceId: *workspace, KeyId: args[0]})
		if err != nil {
			return err
		}
		return s.out.answer(response, func() error { return s.out.key(response.GetKey()) })
	})
}

func (a *app) keyListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List keys, newest first",
		Long: `List keys, newest first. Filters narrow each other. Dates are in UTC.

` + fmt.Sprintf(listHelp, "keys") + "\n\n" + jsonHelp,
		Example: `  keysvc key list --workspace acme
  keysvc key list --workspace acme --state active --expiring-within 30d
  keysvc key list --all --unused-for 90d -o json | jq -r '.keys[].key_id'`,
	}
	var (
		states                          commaList
		expiringWithin, unusedFor       span
		expiringBeforeAt, unusedSinceAt instant
	)
	flags := cmd.Flags()
	workspace := flags.String("workspace", "", "the workspace to list (default: all)")
	member := flags.String("member", "", "only keys of this member")
	scope := flags.String("scope", "", "only keys that were granted this scope")
	flags.Var(&states, "state", "only keys in one of these states: "+strings.Join(keyStates(), ", "))
	flags.Var(&expiringWithin, "expiring-within", "only keys that expire before so much time has passed, as in 30d, or have expired")
	flags.Var(&expiringBeforeAt, "expiring-before", "the same with a time, as in 2027-03-31T12:00:00Z")
	flags.Var(&unusedFor, "unused-for", "only keys that were not used for so long, as in 90d; a key that was never used counts from its creation")
	flags.Var(&unusedSinceAt, "unused-since", "the same with a time, as in 2027-03-31T12:00:00Z")
	pages := pagingFlags(cmd)
	cmd.MarkFlagsMutuallyExclusive("expiring-within", "expiring-before")
	cmd.MarkFlagsMutuallyExclusive("unused-for", "unused-since")
	completions(cmd, "state", keyStates())

	return a.clientCommand(cmd, func(ctx context.Context, s *session, _ []string) error {
		// Whole seconds, so that the note on how to go on can name them exactly.
		now := s.Now().Truncate(time.Second)
		request := &keysvcv1.ListKeysRequest{
			WorkspaceId:    *workspace,
			MemberId:       optional(cmd, "member", member),
			Scope:          optional(cmd, "scope", scope),
			ExpiringBefore: timestamp(expiringBeforeAt, now, expiringWithin, +1),
			UnusedSince:    timestamp(unusedSinceAt, now, unusedFor, -1),
		}
		for _, word := range states {
			state, known := keysvcv1.KeyState_value[keyStatePrefix+strings.ToUpper(word)]
			if !known || state == 0 {
				return usageError(cmd, "--state: allowed are %s", strings.Join(keyStates(), ", "))
			}
			request.States = append(request.States, keysvcv1.KeyState(state))
		}
		// A page token belongs to its filters, and "30 days from now" will be
		// another filter in a minute.
		var again string
		if expiringWithin != 0 {
			again += " and --expiring-before " + request.GetExpiringBefore().AsTime().Format(time.RFC3339) + " in place of --expiring-within"
		}
		if unusedFor != 0 {
			again += " and --unused-since " + request.GetUnusedSince().AsTime().Format(time.RFC3339) + " in place of --unused-for"
		}
		return listing[*keysvcv1.ListKeysResponse]{
			plural: "keys",
			again:  again,
			header: []string{"KEY ID", "WORKSPACE", "MEMBER", "NAME", stateHeader, "CREATED", "LAST USED", "EXPIRES", "SCOPES"},
			fetch: func(pageSize int32, pageToken string) (*keysvcv1.ListKeysResponse, error) {
				request.PageSize, request.PageToken = pageSize, pageToken
				return s.keys.ListKeys(ctx, request)
			},
			rows: func(response *keysvcv1.ListKeysResponse, t *table) int {
				for _, key := range response.GetKeys() {
					t.add(s.out.keyRow(key)...)
				}
				return len(response.GetKeys())
			},
		}.show(s, pages)
	})
}

func (a *app) keyRevokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke KEY_ID",
		Short: "Revoke a key, at once and for good",
		Long: `Revoke a key, at once and for good. Repeating it is no error.

` + jsonHelp,
		Example: `  keysvc key revoke 9fQ2mXc7Lr0TzB4w --workspace acme`,
		Args:    positional("KEY_ID"),
	}
	workspace := cmd.Flags().String("workspace", "", "the key's workspace")
	actor := actorFlag(cmd)
	required(cmd, "workspace")
	return a.clientCommand(cmd, func(ctx context.Context, s *session, args []string) error {
		response, err := s.keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{
			WorkspaceId:   *workspace,
			KeyId:         args[0],
			ActorMemberId: optional(cmd, "actor", actor),
		})
		if err != nil {
			return err
		}
		return s.out.answer(response, func() error { return s.out.key(response.GetKey()) })
	})
}

const keyStatePrefix = "KEY_STATE_"

// keyStates returns the states that keys can be in, as people write them.
func keyStates() []string {
	var words []string
	for _, number := range slices.Sorted(maps.Keys(keysvcv1.KeyState_name)) {
		if number != 0 {
			words = append(words, enumWord(keysvcv1.KeyState(number), keyStatePrefix))
		}
	}
	return words
}

// keyRow is a key's line in a list. Scopes come last, as there may be many.
func (p *printer) keyRow(key *keysvcv1.Key) []string {
	const most = 6
	scopes := key.GetScopes()
	text := strings.Join(scopes[:min(most, len(scopes))], ", ")
	if len(scopes) > most {
		text += fmt.Sprintf(" and %d more", len(scopes)-most)
	}
	expires := day(key.GetExpireTime(), "-")
	if key.GetState() == keysvcv1.KeyState_KEY_STATE_ACTIVE && key.GetExpireTime() != nil {
		expires += " (" + p.away(key.GetExpireTime()) + ")"
	}
	return []string{
		key.GetKeyId(), key.GetWorkspaceId(), key.GetMemberId(), key.GetName(),
		enumWord(key.GetState(), keyStatePrefix),
		day(key.GetCreateTime(), "-"), day(key.GetLastUsedTime(), "never"), expires, text,
	}
}

func (p *printer) key(key *keysvcv1.Key) error { return p.write([]byte(p.keyRecord(key))) }

// keyRecord is all there is to know of a key.
func (p *printer) keyRecord(key *keysvcv1.Key) string {
	addresses := "anywhere"
	if len(key.GetAllowedCidrs()) > 0 {
		addresses = strings.Join(key.GetAllowedCidrs(), ", ")
	}
	fields := []field{
		{"Key", key.GetKeyId()},
		{"Name", key.GetName()},
		{"Workspace", key.GetWorkspaceId()},
		{"Member", key.GetMemberId()},
		{"State", enumWord(key.GetState(), keyStatePrefix)},
		{"Scopes", strings.Join(key.GetScopes(), ", ")},
		{"Usable from", addresses},
		{"Created", p.minute(key.GetCreateTime(), "")},
		{"Last used", p.minute(key.GetLastUsedTime(), "never used")},
		{"Expires", p.minute(key.GetExpireTime(), "")},
		{"Revoked", p.minute(key.GetRevokeTime(), "")},
		{"Labels", joinLabels(key.GetLabels())},
		{"Etag", key.GetEtag()},
	}
	// One secret lives as long as the key does.
	if secrets := key.GetSecrets(); len(secrets) > 1 {
		for i, secret := range secrets {
			fields = append(fields, field{
				fmt.Sprintf("Secret %d", i+1),
				fmt.Sprintf("issued %s; ends %s", p.minute(secret.GetCreateTime(), "-"), p.minute(secret.GetExpireTime(), "-")),
			})
		}
	}
	return record(fields...)
}

func joinLabels(annotations map[string]string) string {
	words := make([]string, 0, len(annotations))
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		words = append(words, name+"="+annotations[name])
	}
	return strings.Join(words, ", ")
}
