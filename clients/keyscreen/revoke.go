package keyscreen

import (
	"net/http"
	"strings"

	"golang.org/x/text/unicode/norm"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// ending is the form to end a key, or its older token.
type ending struct {
	Key   row
	Typed string
	// Error is the message of the field, and Alert that of the form.
	Error, Alert string
}

// revoke serves the form to revoke a key, and revokes it.
func (v *visit) revoke(id string) {
	key, may := v.key(id)
	if !may {
		return
	}
	form := ending{Key: v.rows([]*keysvcv1.Key{key})[0]}
	if !v.posted() {
		v.render(http.StatusOK, "revoke", v.T("revoke.title"), form)
		return
	}
	values, fresh := v.form()
	form.Typed = norm.NFC.String(strings.TrimSpace(values.Get("name")))
	switch {
	case !fresh:
		form.Alert = v.T("error.form_token")
		v.render(http.StatusForbidden, "revoke", v.T("revoke.title"), form)
		return
	case form.Typed != norm.NFC.String(key.GetName()):
		form.Error = v.T("error.name_typed")
		v.render(http.StatusUnprocessableEntity, "revoke", v.T("revoke.title"), form)
		return
	}
	_, err := v.keys.RevokeKey(v.r.Context(), &keysvcv1.RevokeKeyRequest{WorkspaceId: v.viewer.workspace, KeyId: id, ActorMemberId: &v.viewer.member})
	v.ended("RevokeKey", err, "revoked")
}

// finish serves the form to end the older token of a key, and ends it.
func (v *visit) finish(id string) {
	key, may := v.key(id)
	if !may {
		return
	}
	form := ending{Key: v.rows([]*keysvcv1.Key{key})[0]}
	if !v.posted() {
		v.render(http.StatusOK, "finish", v.T("finish.title"), form)
		return
	}
	if _, fresh := v.form(); !fresh {
		form.Alert = v.T("error.form_token")
		v.render(http.StatusForbidden, "finish", v.T("finish.title"), form)
		return
	}
	_, err := v.keys.FinishRotation(v.r.Context(), &keysvcv1.FinishRotationRequest{WorkspaceId: v.viewer.workspace, KeyId: id, ActorMemberId: &v.viewer.member})
	v.ended("FinishRotation", err, "finished")
}

// ended leads back to the table, which says what was done.
func (v *visit) ended(method string, err error, done string) {
	if err != nil {
		v.failed(method, err)
		return
	}
	http.Redirect(v.w, v.r, v.home()+"?done="+done, http.StatusSeeOther)
}
