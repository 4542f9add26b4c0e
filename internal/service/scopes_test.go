package service_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// TestExactlyOneRequirementIsTaken asks all 16 combinations, alone and in a batch, with a key that may
// do all of it: a field that was ignored would let the request pass.
func TestExactlyOneRequirementIsTaken(t *testing.T) {
	w := newWorld(t)
	_, token := w.key("ann", nil, "emails:read")
	defer w.start()()
	for bits := range 16 {
		request, kinds := &keysvcv1.ValidateKeyRequest{Token: token}, 0
		set := func(bit int, do func()) {
			if bits>>bit&1 == 1 {
				kinds++
				do()
			}
		}
		set(0, func() { request.RequiredScope = "emails:read" })
		set(1, func() { request.IdentityOnly = true })
		set(2, func() { request.AllOf = []string{"emails:read"} })
		set(3, func() { request.AnyOf = []string{"emails:read"} })
		response, err := w.service.ValidateKey(known(t), request)
		batch, batchErr := w.service.BatchValidateKeys(known(t), &keysvcv1.BatchValidateKeysRequest{Requests: []*keysvcv1.ValidateKeyRequest{request}})
		if batchErr != nil {
			t.Fatal(batchErr)
		}
		item := batch.GetResponses()[0]
		if kinds == 1 {
			if err != nil || response.GetDecision() != allowed || item.GetDecision() != allowed {
				t.Errorf("%04b: %v, %v; batch %v", bits, response, err, item)
			}
			continue
		}
		if status.Code(err) != codes.InvalidArgument || codes.Code(item.GetError().GetCode()) != codes.InvalidArgument || item.GetDecision() == allowed {
			t.Errorf("%04b: %v, %v; batch %v", bits, response, err, item)
		}
	}
}

func TestListsOfScopesAreChecked(t *testing.T) {
	w := newWorld(t)
	_, token := w.key("ann", nil, "emails:read")
	defer w.start()()
	var many []string
	for index := range 17 {
		many = append(many, fmt.Sprintf("emails:a%d", index))
	}
	for name, test := range map[string]struct {
		scopes []string
		says   string
	}{
		"twice":     {[]string{"emails:read", "emails:read"}, "each is allowed once"},
		"too many":  {many, "1 to 16 are allowed"},
		"unknown":   {[]string{"emails:read", "emails:fly"}, "emails:fly"},
		"malformed": {[]string{"emails:read", "emails"}, "is not a scope"},
		"empty":     {[]string{"emails:read", ""}, "is not a scope"},
		"wildcard":  {[]string{"emails:*"}, "is not a scope"},
	} {
		for field, request := range map[string]*keysvcv1.ValidateKeyRequest{
			"all_of": {Token: token, AllOf: test.scopes}, "any_of": {Token: token, AnyOf: test.scopes},
		} {
			_, err := w.service.ValidateKey(known(t), request)
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), field) || !strings.Contains(err.Error(), test.says) {
				t.Errorf("%s, %s: %v", name, field, err)
			}
		}
	}
}

func TestMissingScopesAreNamedInTheirOrder(t *testing.T) {
	w := newWorld(t)
	_, token := w.key("ann", nil, "emails:read", "financial_documents:read")
	_, managed := w.key("mia", nil, "emails:read", "financial_documents:read")
	defer w.start()()
	for name, test := range map[string]struct {
		request *keysvcv1.ValidateKeyRequest
		reason  keysvcv1.Reason
		missing []string
	}{
		"one":  {&keysvcv1.ValidateKeyRequest{Token: token, RequiredScope: "emails:write"}, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, []string{"emails:write"}},
		"all":  {&keysvcv1.ValidateKeyRequest{Token: token, AllOf: []string{"signatures:read", "emails:read", "emails:write"}}, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, []string{"signatures:read", "emails:write"}},
		"any":  {&keysvcv1.ValidateKeyRequest{Token: token, AnyOf: []string{"signatures:read", "emails:write"}}, keysvcv1.Reason_REASON_SCOPE_NOT_GRANTED, []string{"signatures:read", "emails:write"}},
		"role": {&keysvcv1.ValidateKeyRequest{Token: managed, AllOf: []string{"emails:read", "financial_documents:read"}}, keysvcv1.Reason_REASON_SCOPE_BEYOND_ROLE, []string{"financial_documents:read"}},
		"none": {&keysvcv1.ValidateKeyRequest{Token: token, AnyOf: []string{"emails:write", "emails:read"}}, keysvcv1.Reason_REASON_UNSPECIFIED, nil},
	} {
		response := w.validate(test.request)
		if response.GetReason() != test.reason || !slices.Equal(response.GetMissingScopes(), test.missing) {
			t.Errorf("%s: %v", name, response)
		}
	}
}
