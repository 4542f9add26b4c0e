package attack

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// How long the server may take to end connections: those that flood it, those whose handshake does
// not end, those that do not read their answers, and those whose calls come to nothing, because the
// server reads them slowly.
const (
	soon      = time.Second
	handshake = 15 * time.Second
	unread    = 45 * time.Second
	stalled   = 25 * time.Second
)

// All returns all attacks on a server with or without TLS.
func All(withTLS bool) []Attack {
	attacks := []Attack{
		// What is held: answers, messages, calls, sessions.
		{Name: "closed-windows", What: "lists of 1,000 keys with a closed window, 50 streams and more", Frames: true, Ends: unread, run: closedWindows},
		{Name: "trickled-windows", What: "the same, and each window grows by a byte a second", Frames: true, Ends: unread, run: trickledWindows},
		{Name: "unread-answers", What: "the same, with open windows, and nothing is read", Frames: true, Ends: unread, run: unreadAnswers},
		{Name: "lists", What: "lists of 1,000 keys as fast as possible", Frames: true, run: lists},
		{Name: "empty-batches", What: "1 MiB of empty batch items, 32 at a time", Frames: true, run: emptyBatches},
		{Name: "large-batches", What: "256 long tokens at a time", Frames: true, run: largeBatches},
		{Name: "silent-sessions", What: "17 connections and more full of Sync streams without hello", Frames: true, Slice: true, run: silentSessions},
		{Name: "hello-sessions", What: "17 connections and more full of Sync streams with hello", Frames: true, run: helloSessions},
		{Name: "deaf-sessions", What: "Sync streams that ask and do not read", Frames: true, run: deafSessions},
		{Name: "health-watches", What: "17 connections full of Health.Watch", Frames: true, run: healthWatches},
		{Name: "reflections", What: "reflection streams that ask and do not read", Frames: true, run: reflections},
		{Name: "awaits", What: "8,000 calls that wait for a revision", Frames: true, run: awaits},
		{Name: "waiting-validations", What: "8,000 validations that wait for a revision", Frames: true, run: waitingValidations},
		{Name: "changes", What: "changes of a workspace as fast as possible", Frames: true, run: changes},
		{Name: "half-open", What: "50,000 calls without a message", Frames: true, run: halfOpen},
		{Name: "half-messages", What: "messages of 1 MiB that lack their end", Frames: true, run: halfMessages},
		{Name: "trickled-messages", What: "messages that arrive one byte a second", Frames: true, run: trickledMessages},
		{Name: "invalid-tokens", What: "validations of one invalid token", Frames: true, run: invalidTokens},
		{Name: "invalid-addresses", What: "validations of invalid tokens, each from another address", Frames: true, run: invalidAddresses},
		{Name: "unknown-methods", What: "calls of a method that does not exist", Frames: true, run: unknownMethods},
		// Frames.
		{Name: "rapid-resets", What: "calls that are reset at once, on 4 connections", Frames: true, Ends: soon, run: rapidResets(keysvcv1.ValidationService_ValidateKey_FullMethodName, nil)},
		{Name: "reset-requests", What: "the same, with a whole request", Frames: true, Ends: soon, run: rapidResets(keysvcv1.ValidationService_ValidateKey_FullMethodName, message(&keysvcv1.ValidateKeyRequest{Token: "none", IdentityOnly: true}))},
		{Name: "made-resets", What: "calls that the server is made to reset", Frames: true, Ends: soon, run: madeResets},
		{Name: "refused-streams", What: "more streams than may be open", Frames: true, Slice: true, Ends: stalled, run: refusedStreams},
		{Name: "pings", What: "PING", Frames: true, Slice: true, Ends: soon, run: pings},
		{Name: "settings", What: "SETTINGS", Frames: true, Slice: true, Ends: soon, run: settings},
		{Name: "settings-acks", What: "acknowledgements of SETTINGS", Frames: true, Ends: soon, run: settingsAcks},
		{Name: "window-settings", What: "SETTINGS that change the windows of 900 streams", Frames: true, Ends: stalled, run: windowSettings},
		{Name: "window-updates", What: "WINDOW_UPDATE", Frames: true, Slice: true, Ends: soon, run: windowUpdates},
		{Name: "priorities", What: "PRIORITY", Frames: true, Slice: true, Ends: soon, run: priorities},
		{Name: "empty-data", What: "DATA without data", Frames: true, Slice: true, Ends: soon, run: emptyData},
		{Name: "padded-data", What: "DATA with nothing but padding", Frames: true, Slice: true, Ends: soon, run: paddedData},
		{Name: "stray-resets", What: "RST_STREAM of a stream that never was", Frames: true, Slice: true, Ends: soon, run: strayResets},
		{Name: "go-aways", What: "GOAWAY", Frames: true, Ends: soon, run: goAways},
		{Name: "unknown-frames", What: "frames of an unknown type", Frames: true, Slice: true, Ends: soon, run: unknownFrames},
		{Name: "large-unknown-frames", What: "large frames of an unknown type", Frames: true, Ends: soon, run: largeUnknown},
		{Name: "continuations", What: "header blocks that never end", Frames: true, Slice: true, Ends: soon, run: continuations(strings.Repeat("x", 200))},
		{Name: "empty-continuations", What: "header blocks that never end, of empty frames", Frames: true, Slice: true, Ends: soon, run: continuations("")},
		{Name: "many-fields", What: "calls with 400 header fields", Frames: true, run: manyFields},
		{Name: "large-fields", What: "calls with 200 KiB of headers", Frames: true, Ends: soon, run: largeFields},
		{Name: "largest-fields", What: "calls with as large headers as are allowed", Frames: true, run: largestFields},
		{Name: "references", What: "small header blocks that stand for 36 MB", Frames: true, Slice: true, run: references},
		// Connections.
		{Name: "silent-connections", What: "6,000 connections without a byte", Slice: true, Ends: handshake, Young: true, run: silent},
		{Name: "silent-after-preface", What: "6,000 connections without settings", Ends: handshake, Young: true, run: silentAfterPreface},
		{Name: "slow-prefaces", What: "6,000 connections whose preface trickles", Ends: handshake, Young: true, run: slowPrefaces},
		{Name: "idle-connections", What: "6,000 connections without a call", Frames: true, run: idle},
		{Name: "one-source", What: "the same, all from one address", Frames: true, Alone: true, Slice: true, run: func(ctx context.Context, r *Run) { idle(ctx, r.alone()) }},
		{Name: "idle-after-call", What: "6,000 connections with one call each", Frames: true, run: idleAfterCall},
		{Name: "churn", What: "connections that make one call", Frames: true, Slice: true, run: churn},
		{Name: "knocks", What: "connections that are closed at once", run: knocks},
		{Name: "handshakes", What: "TLS handshakes as fast as possible", TLS: true, run: handshakes},
		{Name: "half-handshakes", What: "6,000 TLS handshakes that do not go on", TLS: true, Slice: true, Ends: handshake, Young: true, run: halfHandshakes},
		{Name: "slow-handshakes", What: "6,000 TLS handshakes that trickle", TLS: true, Ends: handshake, Young: true, run: slowHandshakes},
		{Name: "garbage", What: "bytes that are not HTTP/2", Ends: soon, run: garbage},
	}
	if !withTLS {
		attacks = slices.DeleteFunc(attacks, func(one Attack) bool { return one.TLS })
	}
	single := slices.Clone(attacks)
	return append(attacks, Attack{Name: "mixed", What: "three of the others at a time, each for up to 5 s", run: mixed(single)})
}

// mixed runs three random attacks at a time.
func mixed(attacks []Attack) func(context.Context, *Run) {
	return func(ctx context.Context, r *Run) {
		r.crowd(ctx, 3, func(ctx context.Context, random *rand.Rand) error {
			attack := attacks[random.IntN(len(attacks))]
			turn, cancel := context.WithTimeout(ctx, time.Duration(500+random.IntN(4500))*time.Millisecond)
			defer cancel()
			attack.run(turn, r)
			return nil
		})
	}
}
