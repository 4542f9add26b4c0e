package browser_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdppage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// patience bounds every wait. A wait that lasts so long hangs.
const patience = 15 * time.Second

// way is how a member meets the screen.
type way struct {
	// keyboard is without a mouse.
	keyboard bool
	// phone is 360 pixels wide, instead of 1,440.
	phone bool
	dark  bool
	// script is with JavaScript.
	script bool
}

func (w way) String() string {
	choose := func(is bool, yes, no string) string {
		if is {
			return yes
		}
		return no
	}
	return strings.Join([]string{
		choose(w.keyboard, "keyboard", "mouse"), choose(w.phone, "360", "1440"),
		choose(w.dark, "dark", "light"), choose(w.script, "script", "plain"),
	}, "-")
}

func (w way) width() int64 {
	if w.phone {
		return 360
	}
	return 1440
}

// tab is a tab of Chromium, with cookies and storage of its own.
type tab struct {
	t   *testing.T
	ctx context.Context
	way way

	mutex sync.Mutex
	// complaints are what Chromium complained of: errors in the console, violations of the policy.
	complaints []string
	// requests are the requests that the pages made, with URL, headers and body.
	requests []string
	// expected are texts of complaints that the test provokes.
	expected []string
}

// open opens an empty tab.
func open(t *testing.T, way way) *tab {
	t.Helper()
	needsBrowser(t)
	ctx, end := chromedp.NewContext(chromium, chromedp.WithNewBrowserContext())
	t.Cleanup(end)
	b := &tab{t: t, ctx: ctx, way: way}
	b.prepare()
	return b
}

// another opens another tab, with the same cookies and storage.
func (b *tab) another() *tab {
	b.t.Helper()
	ctx, end := chromedp.NewContext(b.ctx)
	b.t.Cleanup(end)
	other := &tab{t: b.t, ctx: ctx, way: b.way}
	other.prepare()
	return other
}

// prepare makes the tab what its way says, and lets it listen.
func (b *tab) prepare() {
	b.t.Helper()
	ctx, t, way := b.ctx, b.t, b.way
	if err := chromedp.Listen(ctx, b.notice); err != nil {
		t.Fatal(err)
	}
	scheme := "light"
	if way.dark {
		scheme = "dark"
	}
	b.do(
		send(network.Enable, network.EnableParams{}), send(log.Enable, cdp.Empty{}),
		send(runtime.Enable, cdp.Empty{}), send(cdppage.Enable, cdppage.EnableParams{}),
		send(emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
			Width: way.width(), Height: 900, DeviceScaleFactor: 1, Mobile: way.phone,
		}),
		send(emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme},
			// Nothing moves: axe-core would see colours half way.
			{Name: "prefers-reduced-motion", Value: "reduce"},
		}}),
		scripts(way.script),
	)
	t.Cleanup(func() {
		b.mutex.Lock()
		defer b.mutex.Unlock()
		for _, complaint := range b.complaints {
			if !b.isExpected(complaint) {
				t.Errorf("Chromium complains: %s", complaint)
			}
		}
	})
}

func (b *tab) isExpected(complaint string) bool {
	for _, text := range b.expected {
		if strings.Contains(complaint, text) {
			return true
		}
	}
	return false
}

// expect allows a complaint that has a text.
func (b *tab) expect(text string) {
	b.mutex.Lock()
	b.expected = append(b.expected, text)
	b.mutex.Unlock()
}

// notice keeps what Chromium tells.
func (b *tab) notice(event any) {
	b.mutex.Lock()
	defer b.mutex.Unlock()
	switch event := event.(type) {
	case *runtime.EventConsoleAPICalled:
		var text []string
		for _, argument := range event.Args {
			text = append(text, string(argument.Value), argument.Description)
		}
		b.complaints = append(b.complaints, fmt.Sprintf("console.%s: %s", event.Type, strings.Join(text, " ")))
	case *runtime.EventExceptionThrown:
		b.complaints = append(b.complaints, "exception: "+fmt.Sprintf("%s %+v", event.ExceptionDetails.Text, event.ExceptionDetails.Exception))
	case *log.EventEntryAdded:
		b.complaints = append(b.complaints, fmt.Sprintf("%s, %s: %s %s", event.Entry.Source, event.Entry.Level, event.Entry.Text, event.Entry.URL))
	case *network.EventRequestWillBeSent:
		headers, _ := json.Marshal(event.Request.Headers)
		text := event.Request.Method + " " + event.Request.URL + event.Request.URLFragment + " " + string(headers)
		for _, entry := range event.Request.PostDataEntries {
			text += " " + string(entry.Bytes)
		}
		b.requests = append(b.requests, text)
	}
}

// step is a command to Chromium.
type step func(ctx context.Context) error

// send returns the step that sends a command, and drops its result.
func send[P, R any](command cdp.Command[P, R], parameters P) step {
	return func(ctx context.Context) error {
		_, err := chromedp.Call(ctx, command, parameters)
		return err
	}
}

// key returns the step that presses a key, or types letters.
func key(keys string) step {
	return func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.KeyEvent(keys)) }
}

// enter returns the step that presses Enter. Unlike chromedp's, its character comes with the key, as from a
// keyboard: a moment later it might go to a dialog that the key has opened.
func enter() step {
	return func(ctx context.Context) error {
		for _, event := range []input.DispatchKeyEventParams{
			{Type: input.DispatchKeyEventTypeKeyDown, Text: "\r", UnmodifiedText: "\r"}, {Type: input.DispatchKeyEventTypeKeyUp},
		} {
			event.Key, event.Code, event.WindowsVirtualKeyCode, event.NativeVirtualKeyCode = "Enter", "Enter", 13, 13
			if _, err := chromedp.Call(ctx, input.DispatchKeyEvent, event); err != nil {
				return err
			}
		}
		return nil
	}
}

// do runs steps, and fails the test if one fails.
func (b *tab) do(steps ...step) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	for _, run := range steps {
		if err := run(ctx); err != nil {
			b.t.Fatalf("%v\nin: %s", err, b.described())
		}
	}
}

// scripts returns the step that lets the pages run their scripts, or not.
func scripts(on bool) step {
	return send(emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
}

// described says where the tab is, for failures.
func (b *tab) described() string {
	ctx, cancel := context.WithTimeout(b.ctx, 2*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Evaluate[string](`location.href + "\n" + document.body.innerText.slice(0, 3000)`))
	if err != nil {
		return err.Error()
	}
	return text
}

// answer evaluates an expression with the helpers of testdata/helpers.js, by the debugger, so that the page's
// policy does not matter.
func answer[T any](b *tab, expression string) (T, error) {
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](helpers+"\n;("+expression+")", chromedp.EvalAwaitPromise))
}

// ask evaluates an expression, and fails the test if that is not possible.
func ask[T any](b *tab, expression string) T {
	b.t.Helper()
	result, err := answer[T](b, expression)
	if err != nil {
		b.t.Fatalf("%s: %v\nin: %s", expression, err, b.described())
	}
	return result
}

// until waits until an expression is true. What it asks about may come with the next page.
func (b *tab) until(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	ticker := time.NewTicker(30 * time.Millisecond)
	defer ticker.Stop()
	for {
		is, err := answer[bool](b, `document.readyState === "complete" && !!(`+expression+`)`)
		if err == nil && is {
			return
		}
		select {
		case <-ctx.Done():
			b.t.Fatalf("waited in vain for %s (%v)\nin: %s", expression, err, b.described())
		case <-ticker.C:
		}
	}
}

// quote returns a text as JavaScript.
func quote(text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		panic(err)
	}
	return string(quoted)
}

// visit opens an address.
func (b *tab) visit(url string) {
	b.t.Helper()
	b.do(func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.Navigate(url)) })
}

// sees waits until the page shows texts.
func (b *tab) sees(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		b.until("shows(" + quote(text) + ")")
	}
}

// lacks checks that the page does not show texts.
func (b *tab) lacks(texts ...string) {
	b.t.Helper()
	for _, text := range texts {
		if ask[bool](b, "shows("+quote(text)+")") {
			b.t.Errorf("the page shows %q\nin: %s", text, b.described())
		}
	}
}

// uses goes to a control by its role and accessible name, and activates it: a click of the mouse, or Tab
// until it has the focus and then a key. near is a text in the row or group that it is in, or empty.
func (b *tab) uses(role, name, near string) {
	b.t.Helper()
	if !b.way.keyboard {
		b.clicks(role, name, near)
		return
	}
	if role == "box" && ask[bool](b, "isRadio("+control(role, name, near)+")") {
		// Tab leads to the chosen one of a group, and arrows to the others.
		b.tabsTo("box", ask[string](b, "named(groupOf("+control(role, name, near)+"))"), "")
		for range 10 {
			if ask[bool](b, control(role, name, near)+".checked") {
				return
			}
			b.do(key(kb.ArrowDown))
		}
		b.t.Fatalf("arrows do not lead to %q", name)
	}
	b.tabsTo(role, name, near)
	if role == "link" || role == "button" && len(name)%2 == 0 {
		b.do(enter()) // both keys activate a button
	} else {
		b.do(key(" "))
	}
}

// control returns the expression for a control.
func control(role, name, near string) string {
	return fmt.Sprintf("control(%s, %s, %s)", quote(role), quote(name), quote(near))
}

// clicks clicks a control in its middle.
func (b *tab) clicks(role, name, near string) {
	b.t.Helper()
	b.until(control(role, name, near))
	point := ask[struct {
		X, Y float64
		Hit  bool
		Over string
	}](b, "middle("+control(role, name, near)+")")
	if !point.Hit {
		b.t.Fatalf("%s %q is covered by %s\nin: %s", role, name, point.Over, b.described())
	}
	b.do(
		func(ctx context.Context) error { return chromedp.Do(ctx, chromedp.MouseClickXY(point.X, point.Y)) },
	)
}

// tabsTo presses Tab until a control has the focus. The focus must be visible.
func (b *tab) tabsTo(role, name, near string) {
	b.t.Helper()
	b.until(control(role, name, near))
	for range 150 {
		if ask[bool](b, "focused() === "+control(role, name, near)) {
			if !ask[bool](b, "focusVisible()") {
				b.t.Errorf("one cannot see that %s %q has the focus", role, name)
			}
			return
		}
		b.do(key(kb.Tab))
	}
	b.t.Fatalf("Tab does not lead to the %s %q\nin: %s", role, name, b.described())
}

// types puts a text into a field in place of what it has.
func (b *tab) types(name, text string) {
	b.t.Helper()
	if b.way.keyboard {
		b.tabsTo("field", name, "")
	} else {
		b.clicks("field", name, "")
	}
	ask[bool](b, "focused().select?.() ?? true")
	b.do(key(kb.Backspace), send(input.InsertText, input.InsertTextParams{Text: text}))
}

// chooses chooses an option of a list with the arrows. A mouse cannot reach the list that Chromium draws
// outside of the page.
func (b *tab) chooses(name, option string) {
	b.t.Helper()
	b.tabsTo("field", name, "")
	b.do(key(kb.Home))
	for range 20 {
		if ask[string](b, "chosen("+control("field", name, "")+")") == option {
			return
		}
		b.do(key(kb.ArrowDown))
	}
	b.t.Fatalf("the list %q has no %q", name, option)
}

// presses presses a key.
func (b *tab) presses(keys string) {
	b.t.Helper()
	b.do(key(keys))
}

// checkState checks what holds for every state of every page: axe-core finds nothing, and nothing is wider
// than the window.
func (b *tab) checkState(name string) {
	b.t.Helper()
	for _, finding := range b.stateFindings() {
		b.t.Errorf("%s: %s", name, finding)
	}
}

// stateFindings returns what is wrong with the state of a page.
func (b *tab) stateFindings() []string {
	b.t.Helper()
	var found []string
	if wide := ask[[]string](b, "tooWide()"); len(wide) > 0 {
		found = append(found, fmt.Sprintf("wider than %d pixels: %s", b.way.width(), strings.Join(wide, "; ")))
	}
	if !b.way.script {
		// The page's own scripts were not run when it was read, and will not be now.
		b.do(scripts(true))
		defer b.do(scripts(false))
	}
	if !ask[bool](b, "!!window.axe") {
		b.do(func(ctx context.Context) error {
			_, err := chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void](axe+"\n;0"))
			return err
		})
	}
	for _, finding := range ask[[]string](b, "findings()") {
		found = append(found, "axe-core: "+finding)
	}
	return found
}

// historyNow returns the present entry of the history, and what the tab remembers of where it was.
func (b *tab) historyNow() (current int64, entries []*cdppage.NavigationEntry) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.NavigationEntries())
	for err != nil && strings.Contains(err.Error(), "Not attached to an active page") { // between two pages
		result, err = chromedp.Run(ctx, chromedp.NavigationEntries())
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return result.Entries[result.CurrentIndex].ID, result.Entries
}

// checkTokenIsGone checks that a token, and its secret part, is in nothing that the tab keeps or shows, also
// in the pages that back and forward lead to. It leaves the tab at the newest page of its history.
func (b *tab) checkTokenIsGone(token string) {
	b.t.Helper()
	for _, place := range b.placesOf(token) {
		b.t.Errorf("the token is in %s", place)
	}
}

// placesOf returns where a token is.
func (b *tab) placesOf(token string) []string {
	b.t.Helper()
	secret := token[strings.LastIndexByte(token, '_')+1:]
	var places []string
	search := func(where, text string) {
		if strings.Contains(text, token) || strings.Contains(text, secret) {
			places = append(places, where)
		}
	}
	here := func(where string) {
		b.t.Helper()
		for place, text := range ask[map[string]string](b, "everythingKept()") {
			search(place+" of "+where, text)
		}
	}
	here("the page after it was shown")
	if b.way.script {
		search("IndexedDB or CacheStorage", ask[string](b, "databases()"))
	}
	b.mutex.Lock()
	for _, request := range b.requests {
		search("a request", request)
	}
	b.mutex.Unlock()
	_, entries := b.historyNow()
	entries = slices.DeleteFunc(entries, func(entry *cdppage.NavigationEntry) bool { return entry.URL == "about:blank" }) // the new tab
	for _, entry := range entries {
		search("the history", entry.URL+" "+entry.UserTypedURL+" "+entry.Title)
	}
	// From the newest to the oldest, as by the button Back, and forward again.
	for index := len(entries) - 1; index >= 0; index-- {
		b.goTo(entries[index])
		here("back at " + entries[index].URL)
	}
	for _, entry := range entries {
		b.goTo(entry)
		here("forward at " + entry.URL)
	}
	return places
}

// goTo goes to an entry of the history, and waits until its page is there.
func (b *tab) goTo(entry *cdppage.NavigationEntry) {
	b.t.Helper()
	current, _ := b.historyNow()
	if current == entry.ID {
		return
	}
	b.do(send(cdppage.NavigateToHistoryEntry, cdppage.NavigateToHistoryEntryParams{EntryID: entry.ID}))
	for deadline := time.Now().Add(patience); current != entry.ID; current, _ = b.historyNow() {
		if time.Now().After(deadline) {
			b.t.Fatalf("the tab does not go to %s", entry.URL)
		}
	}
	b.until("true")
}

// picture returns the page as a PNG.
func (b *tab) picture() []byte {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	return png
}
