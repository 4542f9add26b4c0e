package policy

import "github.com/scribe-mail/keysvc/internal/strictyaml"

// Error is one mistake in a policy.
type Error = strictyaml.Error

// Errors is every mistake in a policy. Parse and Validate return it; get it with errors.As.
type Errors = strictyaml.Errors //nolint:errname // a list of errors, as its target

// mistakes collects what is wrong with a policy.
type mistakes = strictyaml.Mistakes
