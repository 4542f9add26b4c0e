package keyscreen

import (
	"net/http"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// overlaps are how long an old token can go on, in their order.
var overlaps = []struct {
	value string
	long  time.Duration
}{{"0", 0}, {"1h", time.Hour}, {"1d", 24 * time.Hour}, {"7d", 7 * 24 * time.Hour}, {"30d", 30 * 24 * time.Hour}}

// defaultOverlap is chosen at first.
const defaultOverlap = "7d"

// replacement is the form for a new token of a key.
type replacement struct {
	Once     string
	Key      row
	Overlaps []choice
	Alert    string
}

// replace serves the form for a new token of a key, and makes the token.
func (v *visit) replace(id string) {
	key, may := v.key(id)
	if !may {
		return
	}
	if !v.own(key) {
		v.problem(http.StatusForbidden, "problem.not_own")
		return
	}
	form := replacement{Once: newOnce(), Key: v.rows([]*keysvcv1.Key{key})[0]}
	chosen := defaultOverlap
	if form.Key.MayFinish {
		chosen = "0"
	}
	if !v.posted() {
		v.replacementForm(http.StatusOK, form, chosen)
		return
	}
	values, fresh := v.form()
	if once := values.Get("once"); len(once) == len(form.Once) {
		form.Once = once
	}
	which := slices.IndexFunc(overlaps, func(known struct {
		value string
		long  time.Duration
	},
	) bool {
		return known.value == values.Get("overlap")
	})
	switch {
	case !fresh:
		form.Alert = "error.form_token"
		v.replacementForm(http.StatusForbidden, form, values.Get("overlap"))
		return
	case which < 0:
		form.Alert = "error.overlap"
		v.replacementForm(http.StatusUnprocessableEntity, form, chosen)
		return
	}
	request := v.requestID(form.Once)
	rotated, token, err := v.rotateKey(&keysvcv1.RotateKeyRequest{
		WorkspaceId: v.viewer.workspace, KeyId: id, ActorMemberId: &v.viewer.member,
		Overlap: durationpb.New(overlaps[which].long), RequestId: &request,
	})
	if err == nil {
		v.show(rotated, token, true)
		return
	}
	f := v.explain("RotateKey", err)
	if f.message == "error.repeated" {
		v.repeated(id)
		return
	}
	form.Alert = f.message
	v.replacementForm(f.status, form, values.Get("overlap"))
}

// rotateKey gives a key a new token as Config.IssueLocally says.
func (v *visit) rotateKey(request *keysvcv1.RotateKeyRequest) (*keysvcv1.Key, string, error) {
	if v.config.IssueLocally {
		issuer := v.issuer
		issuer.Prefix = v.viewer.policy.GetTokenPrefix()
		issued, err := issuer.Rotate(v.r.Context(), request)
		if err != nil {
			return nil, "", err
		}
		return issued.Key, issued.Reveal(), nil
	}
	response, err := v.keys.RotateKey(v.r.Context(), request)
	return response.GetKey(), response.GetToken(), err
}

// replacementForm answers with the form.
func (v *visit) replacementForm(status int, form replacement, chosen string) {
	if status == http.StatusServiceUnavailable {
		v.w.Header().Set("Retry-After", retryAfter)
	}
	for _, known := range overlaps {
		// A third token is refused, so that a key in rotation can only end both.
		if known.long == 0 || !form.Key.MayFinish {
			form.Overlaps = append(form.Overlaps, choice{known.value, v.T("overlap." + known.value), known.value == chosen})
		}
	}
	if form.Alert != "" {
		form.Alert = v.T(form.Alert)
	}
	v.render(status, "replace", v.T("replace.title"), form)
}
