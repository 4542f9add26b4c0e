package keyscreen

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// maxCalls is how often keysvc is asked for one page: a page of a large store may be short, even empty.
const maxCalls = 8

// maxSearch is how many characters a search may have.
const maxSearch = 128

// views are the filters of the table, in their order. The first one is the default.
var views = []string{"all", "active", "expiring", "unused", "suspended", "held", "expired", "revoked"}

// notices are what the table can say about what was done before.
var notices = []string{"revoked", "finished"}

// table is the page with the keys.
type table struct {
	Rows []row
	// Search, View and Mine are the filters.
	Search, View string
	Mine         bool
	Filtered     bool
	Views        []choice
	// Total says how many keys pass the filters; empty if keysvc does not tell.
	Total string
	// Next and First are addresses of pages; empty if there are none.
	Next, First string
	All         bool
	MayCreate   bool
	NoScopes    bool
	Outdated    bool
	Notice      string
	// Refresh is the address of this page without the notice.
	Refresh string
}

// choice is one of several to choose from.
type choice struct {
	Value, Label string
	Chosen       bool
}

// list answers with the table of keys.
func (v *visit) list() {
	query := v.r.URL.Query()
	page := table{
		Search: strings.TrimSpace(query.Get("search")), View: query.Get("view"), Mine: v.viewer.all && query.Get("mine") != "",
		All: v.viewer.all, Outdated: v.viewer.outdated,
		MayCreate: len(v.viewer.assignable) > 0, NoScopes: len(v.viewer.assignable) == 0 && !v.viewer.outdated,
	}
	if !slices.Contains(views, page.View) {
		page.View = views[0]
	}
	if !utf8.ValidString(page.Search) {
		page.Search = ""
	}
	if characters := []rune(page.Search); len(characters) > maxSearch {
		page.Search = string(characters[:maxSearch])
	}
	for _, view := range views {
		page.Views = append(page.Views, choice{view, v.T("view." + view), view == page.View})
	}
	page.Filtered = page.Search != "" || page.View != views[0] || page.Mine
	if done := query.Get("done"); slices.Contains(notices, done) {
		page.Notice = v.T("done." + done)
	}
	page.Refresh = v.address(page, query.Get("page"))

	request := v.listRequest(page)
	request.PageToken = query.Get("page")
	var keys []*keysvcv1.Key
	for range maxCalls {
		response, err := v.keys.ListKeys(v.r.Context(), request)
		if err != nil {
			if reason, _ := reasonOf(err); reason == keysvcv1.ErrorReason_ERROR_REASON_PAGE_TOKEN_INVALID {
				// A token of another version or filter: begin again.
				http.Redirect(v.w, v.r, v.address(page, ""), http.StatusSeeOther)
				return
			}
			v.failed("ListKeys", err)
			return
		}
		keys = append(keys, response.GetKeys()...)
		if response.TotalSize != nil {
			page.Total = v.language.count("table.total", int(response.GetTotalSize()))
		}
		request.PageToken, request.WithTotalSize = response.GetNextPageToken(), false
		if request.PageToken == "" || len(keys) >= v.config.PageSize {
			break
		}
		request.PageSize = int32(v.config.PageSize - len(keys)) //nolint:gosec // G115: New bounds it
	}
	page.Rows = v.rows(keys)
	if request.PageToken != "" {
		page.Next = v.address(page, request.PageToken)
	}
	if query.Get("page") != "" {
		page.First = v.address(page, "")
	}
	v.render(http.StatusOK, "list", v.T("table.title"), page)
}

// listRequest returns the request for the filters of a page.
func (v *visit) listRequest(page table) *keysvcv1.ListKeysRequest {
	request := &keysvcv1.ListKeysRequest{
		WorkspaceId: v.viewer.workspace, NameContains: page.Search, WithTotalSize: true,
		PageSize: int32(v.config.PageSize), //nolint:gosec // G115: New bounds it
	}
	if !v.viewer.all || page.Mine {
		request.MemberId = &v.viewer.member
	}
	working := []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_ACTIVE, keysvcv1.KeyState_KEY_STATE_SUSPENDED, keysvcv1.KeyState_KEY_STATE_HELD}
	switch page.View {
	case "active":
		request.States = working[:1]
	case "expiring":
		request.States, request.ExpiringBefore = working, timestamppb.New(v.soonEnd())
	case "unused":
		request.States, request.UnusedSince = working, timestamppb.New(v.soonEnd().Add(-soon-unused))
	case "suspended":
		request.States = working[1:2]
	case "held":
		request.States = working[2:]
	case "expired":
		request.States = []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_EXPIRED}
	case "revoked":
		request.States = []keysvcv1.KeyState{keysvcv1.KeyState_KEY_STATE_REVOKED}
	}
	return request
}

// soonEnd returns the end of what is soon: that of the day. It must not change from page to page, because
// a page token is for one filter.
func (v *visit) soonEnd() time.Time {
	const day = 24 * time.Hour
	return v.now.Truncate(day).Add(day + soon)
}

// address returns the address of the table with the filters of a page.
func (v *visit) address(page table, token string) string {
	query := url.Values{}
	if page.Search != "" {
		query.Set("search", page.Search)
	}
	if page.View != views[0] {
		query.Set("view", page.View)
	}
	if page.Mine {
		query.Set("mine", "1")
	}
	if token != "" {
		query.Set("page", token)
	}
	if len(query) == 0 {
		return v.home()
	}
	return v.home() + "?" + query.Encode()
}
