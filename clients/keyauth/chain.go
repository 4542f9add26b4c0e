package keyauth

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// Link is one older kind of token in a Chain.
type Link struct {
	// Name says which kind of token it is, in logs and in Principal.Credential, for example "old key".
	// Required, and each name once.
	Name string
	// Recognizes reports by its form alone whether a token is of this kind, for example by what it begins with.
	// Required. It runs for each request whose token is not of keysvc's own form.
	Recognizes func(token string) bool
	// Validator decides on tokens of this kind. Required. It must check the requirement, the workspace and the
	// address of the Question as it can: what it does not check is not checked. It must not keep the
	// Question, and must not return the Principal of one member to another.
	Validator Validator
}

// Chain returns a Validator for a service that has older tokens beside keysvc's. The form of a token says who
// decides, and that answer counts: a refusal or an error of one Validator is never taken to the next.
//
//   - A text with _ksk1_ in it is a key of keysvc, and goes to keysvc alone.
//   - Otherwise the first link that recognizes the text decides.
//   - Otherwise keysvc decides. It knows imported tokens, which may look like anything, and refuses the rest.
//
// Principal.Credential is the name of the link, and empty for keysvc. The Validator is a Watcher for the tokens of
// each Validator that is one; streams with other tokens are decided once, when they begin. The error names every
// link that lacks something.
func Chain(keysvc Validator, links ...Link) (Validator, error) {
	var wrong []error
	if keysvc == nil {
		wrong = append(wrong, errors.New("keyauth: Chain: keysvc: is nil; a Validator is required"))
	}
	made := &chain{keysvc: linked{Link: Link{Validator: keysvc}, watcher: watcherOf(keysvc)}}
	names := make(map[string]bool)
	for index, link := range links {
		switch {
		case link.Name == "":
			wrong = append(wrong, fmt.Errorf("keyauth: Chain: links[%d].Name: is empty; it marks the principals", index))
		case names[link.Name]:
			wrong = append(wrong, fmt.Errorf("keyauth: Chain: links[%d].Name: %q is in the chain twice", index, link.Name))
		}
		if link.Recognizes == nil {
			wrong = append(wrong, fmt.Errorf("keyauth: Chain: links[%d].Recognizes: is nil; a link decides on tokens of its own form only", index))
		}
		if link.Validator == nil {
			wrong = append(wrong, fmt.Errorf("keyauth: Chain: links[%d].Validator: is nil; one is required", index))
		}
		names[link.Name] = true
		made.links = append(made.links, linked{Link: link, watcher: watcherOf(link.Validator)})
	}
	if len(wrong) > 0 {
		return nil, errors.Join(wrong...)
	}
	return made, nil
}

// watcherOf returns a Validator as a Watcher; nil if it does not watch.
func watcherOf(validator Validator) Watcher {
	watcher, ok := validator.(Watcher)
	if !ok {
		return nil
	}
	// A Watcher such as a keyclient.Client without a near-cache may report that it does not watch.
	if optional, has := validator.(interface{ Watches() bool }); has && !optional.Watches() {
		return nil
	}
	return watcher
}

// chain is the Validator that Chain returns.
type chain struct {
	keysvc linked
	links  []linked
}

// linked is a Link; watcher is nil if its Validator does not watch.
type linked struct {
	Link
	watcher Watcher
}

// ownForm is in each token of keysvc's own form, after its prefix.
const ownForm = "_ksk1_"

// of returns the link that decides on a token.
func (c *chain) of(token string) *linked {
	if !strings.Contains(token, ownForm) {
		for index := range c.links {
			if c.links[index].Recognizes(token) {
				return &c.links[index]
			}
		}
	}
	return &c.keysvc
}

// Watches reports whether a Validator of the chain watches.
func (c *chain) Watches() bool {
	for _, link := range c.links {
		if link.watcher != nil {
			return true
		}
	}
	return c.keysvc.watcher != nil
}

// Validate implements Validator.
func (c *chain) Validate(ctx context.Context, question Question) (Answer, error) {
	link := c.of(question.Token)
	answer, err := link.Validator.Validate(ctx, question)
	return link.marked(answer, err)
}

// Watch implements Watcher.
func (c *chain) Watch(ctx context.Context, question Question) (Answer, error) {
	link := c.of(question.Token)
	if link.watcher == nil {
		<-ctx.Done()
		return Answer{}, ctx.Err()
	}
	answer, err := link.watcher.Watch(ctx, question)
	return link.marked(answer, err)
}

// marked returns an answer of a link with the link's name in its principal.
func (l *linked) marked(answer Answer, err error) (Answer, error) {
	if err != nil || answer.Principal == nil || l.Name == "" {
		return answer, err
	}
	if answer.Decision == keysvcv1.Decision_DECISION_ALLOWED && answer.Principal.WorkspaceID == "" {
		return Answer{}, status.Error(codes.Internal, "a link of the chain allowed a token and named no workspace")
	}
	principal := *answer.Principal // it is shared
	principal.Credential = l.Name
	answer.Principal = &principal
	return answer, nil
}
