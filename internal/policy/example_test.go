package policy_test

import (
	"fmt"

	"github.com/scribe-mail/keysvc/internal/policy"
)

func ExampleParse() {
	_, err := policy.Parse("acme.yaml", []byte(`version: 1
resources:
  - name: invoices
    actions: [read, Write]
roles:
  - name: clerk
    scopes: ["invoices:pay"]
retention_days: 0
`))
	fmt.Println(err)
	// Output:
	// acme.yaml:4:21: resources[0].actions[1]: is "Write", allowed are 1 to 64 characters of a-z, 0-9 and _, the first a letter
	// acme.yaml:7:14: roles[0].scopes[0]: is "invoices:pay", but invoices has no action "pay", allowed are those under resources
	// acme.yaml:8:17: retention_days: is 0, allowed are 1 to 3650 whole days
}
