package keyscreen

import (
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// expiries are the ends that a key can be given, in their order. The first one is the default.
var expiries = []string{"year", "90", "30", "date"}

// dateLayout is how browsers send a date.
const dateLayout = "2006-01-02"

// creation is the form for a new key.
type creation struct {
	Once, Name string
	Scopes     []string
	Expiry     string
	Date       string

	Resources        []resource
	Expiries         []choice
	MinDate, MaxDate string
	MaxName          int32
	// Errors has a message for each field that is wrong. Alert is one for the whole form.
	Errors map[string]string
	Alert  string
}

// create serves the form for a new key, and makes the key.
func (v *visit) create() {
	switch {
	case v.viewer.outdated:
		v.problem(http.StatusServiceUnavailable, "problem.outdated")
		return
	case len(v.viewer.assignable) == 0:
		v.problem(http.StatusForbidden, "problem.no_scopes")
		return
	}
	if !v.posted() {
		v.creationForm(http.StatusOK, creation{Once: newOnce(), Expiry: expiries[0]})
		return
	}
	values, fresh := v.form()
	asked := creation{
		Once: values.Get("once"), Name: norm.NFC.String(strings.TrimSpace(values.Get("name"))),
		Scopes: values["scope"], Expiry: values.Get("expiry"), Date: values.Get("date"), Errors: map[string]string{},
	}
	if len(asked.Once) != len(newOnce()) {
		asked.Once = newOnce()
	}
	if !fresh {
		asked.Alert = "error.form_token"
		v.creationForm(http.StatusForbidden, asked)
		return
	}
	switch values.Get("preset") {
	case "read":
		asked.Scopes = readOnly(v.viewer.assignable)
		v.creationForm(http.StatusOK, asked)
		return
	case "all":
		asked.Scopes = v.viewer.assignable
		v.creationForm(http.StatusOK, asked)
		return
	case "none":
		asked.Scopes = nil
		v.creationForm(http.StatusOK, asked)
		return
	}
	expires := v.checkCreation(&asked)
	if len(asked.Errors) > 0 {
		asked.Alert = "error.form"
		v.creationForm(http.StatusUnprocessableEntity, asked)
		return
	}
	v.issue(asked, expires)
}

// checkCreation fills in asked.Errors, and returns when the key is to expire; nil for a year from now.
func (v *visit) checkCreation(asked *creation) *timestamppb.Timestamp {
	limits := v.viewer.policy.GetLimits()
	switch count := utf8.RuneCountInString(asked.Name); {
	case count == 0:
		asked.Errors["name"] = v.T("error.name_missing")
	case !utf8.ValidString(asked.Name) || strings.ContainsFunc(asked.Name, unicode.IsControl):
		asked.Errors["name"] = v.T("error.name")
	case count > int(limits.GetKeyNameCharacters()):
		asked.Errors["name"] = v.language.count("error.name_long", int(limits.GetKeyNameCharacters()))
	}
	switch {
	case len(asked.Scopes) == 0:
		asked.Errors["scopes"] = v.T("error.scopes_missing")
	case len(asked.Scopes) > int(limits.GetScopesPerKey()):
		asked.Errors["scopes"] = v.language.count("error.scopes_many", int(limits.GetScopesPerKey()))
	case slices.ContainsFunc(asked.Scopes, func(scope string) bool { return !slices.Contains(v.viewer.assignable, scope) }):
		asked.Errors["scopes"] = v.T("error.scopes_beyond")
	}
	switch asked.Expiry {
	case "year":
		return nil
	case "90":
		return timestamppb.New(v.now.AddDate(0, 0, 90))
	case "30":
		return timestamppb.New(v.now.AddDate(0, 0, 30))
	case "date":
		return v.checkDate(asked)
	}
	asked.Errors["expiry"] = v.T("error.date_missing")
	return nil
}

// checkDate returns the end of the chosen day, in the zone of the visit, and a year from now at most.
func (v *visit) checkDate(asked *creation) *timestamppb.Timestamp {
	day, err := time.ParseInLocation(dateLayout, asked.Date, v.zone)
	year := v.now.AddDate(1, 0, 0)
	switch {
	case asked.Date == "":
		asked.Errors["expiry"] = v.T("error.date_missing")
		return nil
	case err != nil || !day.AddDate(0, 0, 1).After(v.now) || day.After(year):
		asked.Errors["expiry"] = v.T("error.date")
		return nil
	case day.AddDate(0, 0, 1).After(year):
		return nil
	}
	return timestamppb.New(day.AddDate(0, 0, 1))
}

// issue makes the key, and answers with its token.
func (v *visit) issue(asked creation, expires *timestamppb.Timestamp) {
	id := v.requestID(asked.Once)
	request := &keysvcv1.CreateKeyRequest{
		WorkspaceId: v.viewer.workspace, MemberId: v.viewer.member, ActorMemberId: &v.viewer.member,
		Name: asked.Name, Scopes: asked.Scopes, ExpireTime: expires, RequestId: &id,
	}
	key, token, err := v.createKey(request)
	if err == nil {
		v.show(key, token, false)
		return
	}
	f := v.explain("CreateKey", err)
	if f.keyID != "" {
		v.repeated(f.keyID)
		return
	}
	asked.Alert = f.message
	for field, message := range f.fields {
		asked.Errors[field] = v.T(message)
	}
	v.creationForm(f.status, asked)
}

// createKey creates a key as Config.IssueLocally says.
func (v *visit) createKey(request *keysvcv1.CreateKeyRequest) (*keysvcv1.Key, string, error) {
	if v.config.IssueLocally {
		issuer := v.issuer
		issuer.Prefix = v.viewer.policy.GetTokenPrefix()
		issued, err := issuer.Create(v.r.Context(), request)
		if err != nil {
			return nil, "", err
		}
		return issued.Key, issued.Reveal(), nil
	}
	response, err := v.keys.CreateKey(v.r.Context(), request)
	return response.GetKey(), response.GetToken(), err
}

// creationForm answers with the form.
func (v *visit) creationForm(status int, asked creation) {
	if status == http.StatusServiceUnavailable {
		v.w.Header().Set("Retry-After", retryAfter)
	}
	if !slices.Contains(expiries, asked.Expiry) {
		asked.Expiry = expiries[0]
	}
	asked.Resources = v.catalogue(v.viewer.assignable)
	for index := range asked.Resources {
		for which := range asked.Resources[index].Actions {
			act := &asked.Resources[index].Actions[which]
			act.Checked = slices.Contains(asked.Scopes, act.Scope)
		}
	}
	for _, expiry := range expiries {
		asked.Expiries = append(asked.Expiries, choice{expiry, v.T("expiry." + expiry), expiry == asked.Expiry})
	}
	today := v.now.In(v.zone)
	asked.MinDate, asked.MaxDate = today.Format(dateLayout), today.AddDate(1, 0, 0).Format(dateLayout)
	asked.MaxName = v.viewer.policy.GetLimits().GetKeyNameCharacters()
	if asked.Alert != "" {
		asked.Alert = v.T(asked.Alert)
	}
	v.render(status, "create", v.T("create.title"), asked)
}

// shown is the page with a token.
type shown struct {
	Key      row
	Token    string
	Replaced bool
	Overlap  moment
	Example  string
}

// show answers with a token, which no other answer has.
func (v *visit) show(key *keysvcv1.Key, token string, replaced bool) {
	page := shown{Key: v.rows([]*keysvcv1.Key{key})[0], Token: token, Replaced: replaced, Example: v.config.ExampleURL}
	if secrets := v.live(key); replaced && len(secrets) > 1 {
		page.Overlap = v.moment(secrets[1].GetExpireTime())
	}
	title := v.T("shown.title")
	if replaced {
		title = v.T("shown.title_replaced")
	}
	v.render(http.StatusOK, "shown", title, page)
}

// repeated answers a form that was sent before. Its key exists, and its token was shown, or its answer
// was lost.
func (v *visit) repeated(id string) {
	key, may := v.key(id)
	if !may {
		return
	}
	v.render(http.StatusConflict, "repeated", v.T("repeated.title"), v.rows([]*keysvcv1.Key{key})[0])
}
