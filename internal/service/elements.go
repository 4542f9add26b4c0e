package service

import (
	"github.com/scribe-mail/keysvc/internal/budget"
	"github.com/scribe-mail/keysvc/internal/keys"
)

// ElementLimits returns how many elements the repeated fields of requests may have, where
// budget.DefaultElements does not fit. A request with more is refused before it is decoded.
func ElementLimits() budget.Limits {
	return budget.Limits{
		"keysvc.v1.BatchValidateKeysRequest.requests": MaxBatch,
		"keysvc.v1.ImportKeysRequest.keys":            keys.MaxImports,
		"keysvc.v1.SyncPing.uses":                     MaxUses,
		"keysvc.v1.SyncPing.decisions":                MaxDecisions,
		// Of all resources and roles of a policy together. The policy's own limits are stricter.
		"keysvc.v1.PolicyResource.actions": 65536,
		"keysvc.v1.PolicyRole.scopes":      65536,
	}
}
