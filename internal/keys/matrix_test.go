package keys_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/decide"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// matrix has the answer of every operation in every state of key, member and workspace. A dash
// means success, "=" success without a change; everything else is the reason of an error.
//
// The states of a key are active, rotating (two live secrets), expired and revoked. Those of a
// member are active, suspended, removed, and again (removed and added again). Those of a
// workspace are here, removed, and again (removed, and back with the same member).
const matrix = `
key      member    workspace  create            get          update       rotate       rotate-overlap        finish       revoke  revoke-token   validate         validate-old
active   active    here       -                 ACTIVE       -            -            -                     -            -       -              -                KEY_INVALID
active   suspended here       MEMBER_SUSPENDED  SUSPENDED    -            -            -                     -            -       -              MEMBER_INACTIVE  KEY_INVALID
active   removed   here       MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   again     here       -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   active    removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   suspended removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   removed   removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   again     removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   active    again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   suspended again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   removed   again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
active   again     again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
rotating active    here       -                 ACTIVE       -            -            ROTATION_IN_PROGRESS  -            -       -              -                -
rotating suspended here       MEMBER_SUSPENDED  SUSPENDED    -            -            ROTATION_IN_PROGRESS  -            -       -              MEMBER_INACTIVE  MEMBER_INACTIVE
rotating removed   here       MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating again     here       -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating active    removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating suspended removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating removed   removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating again     removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating active    again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating suspended again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating removed   again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
rotating again     again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_REVOKED
expired  active    here       -                 EXPIRED      KEY_EXPIRED  KEY_EXPIRED  KEY_EXPIRED           KEY_EXPIRED  -       KEY_NOT_FOUND  KEY_EXPIRED      KEY_INVALID
expired  suspended here       MEMBER_SUSPENDED  EXPIRED      KEY_EXPIRED  KEY_EXPIRED  KEY_EXPIRED           KEY_EXPIRED  -       KEY_NOT_FOUND  KEY_EXPIRED      KEY_INVALID
expired  removed   here       MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  again     here       -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  active    removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  suspended removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  removed   removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  again     removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  active    again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  suspended again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  removed   again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
expired  again     again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  -       -              KEY_REVOKED      KEY_INVALID
revoked  active    here       -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  suspended here       MEMBER_SUSPENDED  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  removed   here       MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  again     here       -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  active    removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  suspended removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  removed   removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  again     removed    MEMBER_NOT_FOUND  REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  active    again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  suspended again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  removed   again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
revoked  again     again      -                 REVOKED      KEY_REVOKED  KEY_REVOKED  KEY_REVOKED           KEY_REVOKED  =       =              KEY_REVOKED      KEY_INVALID
`

// operations are the columns of the matrix after the three states.
var operations = []string{
	"create", "get", "update", "rotate", "rotate-overlap", "finish", "revoke", "revoke-token", "validate", "validate-old",
}

func TestEveryOperationAnswersAsTheMatrixSays(t *testing.T) {
	rows := parseMatrix(t)
	if want := 4 * 4 * 3; len(rows) != want {
		t.Fatalf("the matrix has %d rows, want %d", len(rows), want)
	}
	w := keystest.NewWorld(t, keystest.NewBolt(t), nil)
	for number, row := range rows {
		for column, operation := range operations {
			// Each cell has a workspace of its own, so that no cell sees another's changes.
			c := &cell{World: w, t: t, workspaceID: fmt.Sprintf("ws-%d-%s", number, operation)}
			c.prepare(row.key, row.member, row.workspace)
			if got := c.do(operation); got != row.answers[column] {
				t.Errorf("key %s, member %s, workspace %s: %s answers %s, want %s",
					row.key, row.member, row.workspace, operation, got, row.answers[column])
			}
		}
	}
}

type matrixRow struct {
	key, member, workspace string
	answers                []string
}

func parseMatrix(t *testing.T) []matrixRow {
	t.Helper()
	var rows []matrixRow
	for _, line := range strings.Split(strings.TrimSpace(matrix), "\n")[1:] {
		fields := strings.Fields(line)
		if len(fields) != 3+len(operations) {
			t.Fatalf("%d columns in %q", len(fields), line)
		}
		rows = append(rows, matrixRow{fields[0], fields[1], fields[2], fields[3:]})
	}
	return rows
}

// cell is one cell of the matrix.
type cell struct {
	*keystest.World
	t           *testing.T
	workspaceID string
	keyID       string
	// newest and old are tokens. The key has the secret of newest, and while it is rotating also
	// that of old; otherwise it never had the secret of old.
	newest, old string
}

// prepare makes the states of a row. The key comes first, then the member, then the workspace,
// because a key cannot be changed any more once its member or workspace was removed.
func (c *cell) prepare(key, member, workspace string) {
	c.t.Helper()
	ctx := context.Background()
	active := keysvcv1.MemberState_MEMBER_STATE_ACTIVE
	c.Put(c.workspaceID, "ann", "manager", active)
	created := c.Create(c.workspaceID, "ann", "signatures:read")
	c.keyID, c.newest = created.GetKey().GetKeyId(), created.GetToken()
	c.old = created.GetToken()[:len("scribe_ksk1_")] + "0000000000000000" + created.GetToken()[len("scribe_ksk1_0000000000000000"):]
	switch key {
	case "rotating":
		c.old = c.newest
		c.newest = c.rotate(time.Hour)
	case "expired":
		// The clock is shared with the cells before. So the key is rotated to a secret that expires
		// within a second, and the clock moves by seconds only.
		c.Clock.Advance(time.Second)
		soon := c.Clock.Now().Add(time.Second)
		c.newest = c.rotateUntil(soon)
		c.Clock.Advance(time.Second)
	case "revoked":
		c.Must(c.RevokeKey(ctx, keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: c.workspaceID, KeyId: c.keyID}))
	}
	remove := func() {
		c.Must(c.RemoveMember(ctx, keystest.Actor, &keysvcv1.RemoveMemberRequest{WorkspaceId: c.workspaceID, MemberId: "ann"}))
	}
	switch member {
	case "suspended":
		c.Put(c.workspaceID, "ann", "manager", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
	case "removed":
		remove()
	case "again":
		remove()
		c.Put(c.workspaceID, "ann", "manager", active)
	}
	if workspace != "here" {
		c.Must(c.RemoveWorkspace(ctx, keystest.Actor, &keysvcv1.RemoveWorkspaceRequest{WorkspaceId: c.workspaceID}))
	}
	if workspace == "again" {
		c.Put(c.workspaceID, "ann", "manager", active)
	}
}

func (c *cell) rotate(overlap time.Duration) string {
	c.t.Helper()
	rotated, err := c.RotateKey(context.Background(), keystest.Actor, &keysvcv1.RotateKeyRequest{
		WorkspaceId: c.workspaceID, KeyId: c.keyID, Overlap: durationpb.New(overlap),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return rotated.GetToken()
}

func (c *cell) rotateUntil(expireTime time.Time) string {
	c.t.Helper()
	rotated, err := c.RotateKey(context.Background(), keystest.Actor, &keysvcv1.RotateKeyRequest{
		WorkspaceId: c.workspaceID, KeyId: c.keyID, Overlap: durationpb.New(0), ExpireTime: timestamppb.New(expireTime),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return rotated.GetToken()
}

// do runs an operation and returns its answer as the matrix has it.
func (c *cell) do(operation string) string {
	ctx := context.Background()
	before := c.Projection.Revision()
	var err error
	switch operation {
	case "create":
		_, err = c.CreateKey(ctx, keystest.Actor, &keysvcv1.CreateKeyRequest{
			WorkspaceId: c.workspaceID, MemberId: "ann", Name: "another", Scopes: []string{"signatures:read"},
		})
	case "get":
		got, err := c.GetKey(ctx, access.All(), &keysvcv1.GetKeyRequest{WorkspaceId: c.workspaceID, KeyId: c.keyID})
		if err != nil {
			return err.Error()
		}
		return got.GetKey().GetState().String()[len("KEY_STATE_"):]
	case "update":
		_, err = c.UpdateKey(ctx, keystest.Actor, &keysvcv1.UpdateKeyRequest{
			Key:        &keysvcv1.Key{WorkspaceId: c.workspaceID, KeyId: c.keyID, Name: "another name"},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
		})
	case "rotate", "rotate-overlap":
		overlap := time.Duration(0)
		if operation == "rotate-overlap" {
			overlap = time.Minute
		}
		_, err = c.RotateKey(ctx, keystest.Actor, &keysvcv1.RotateKeyRequest{
			WorkspaceId: c.workspaceID, KeyId: c.keyID, Overlap: durationpb.New(overlap),
		})
	case "finish":
		_, err = c.FinishRotation(ctx, keystest.Actor, &keysvcv1.FinishRotationRequest{WorkspaceId: c.workspaceID, KeyId: c.keyID})
		if err == nil {
			return "-" // without a change as well: a key that is not rotating has nothing to finish
		}
	case "revoke":
		_, err = c.RevokeKey(ctx, keystest.Actor, &keysvcv1.RevokeKeyRequest{WorkspaceId: c.workspaceID, KeyId: c.keyID})
	case "revoke-token":
		_, err = c.RevokeToken(ctx, keystest.Actor, &keysvcv1.RevokeTokenRequest{Token: c.newest})
	case "validate", "validate-old":
		token := c.newest
		if operation == "validate-old" {
			token = c.old
		}
		answer, err := c.Validator.Validate(ctx, validation.Question{
			Workspaces: access.All(),
			Token:      token, Requirement: decide.Requirement{Scope: "signatures:read"},
		})
		switch {
		case err != nil:
			return err.Error()
		case answer.Decision == decide.Allowed:
			return "-"
		}
		return keysvcv1.Reason(answer.Reason).String()[len("REASON_"):]
	}
	if err != nil {
		return keystest.ReasonOf(err).String()[len("ERROR_REASON_"):]
	}
	if c.Projection.Revision() == before {
		return "="
	}
	return "-"
}
