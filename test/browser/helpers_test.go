package browser_test

import _ "embed"

// helpers is what the tests ask of a page.
//
//go:embed testdata/helpers.js
var helpers string
