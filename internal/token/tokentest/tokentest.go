// Package tokentest has what tests of several packages know about tokens.
package tokentest

import "strings"

// Vector is the token of ADR 0003. No keysvc has issued it.
const Vector = "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefg19xh1J"

// Surroundings are texts around a token, by name, as people and programs leave them. In each of
// them a scanner must find the token.
var Surroundings = map[string]func(token string) string{
	"alone":                 func(token string) string { return token },
	"a line break behind":   func(token string) string { return token + "\n" },
	"carriage return":       func(token string) string { return token + "\r\n" },
	"spaces":                func(token string) string { return "  " + token + "\t" },
	"quotes":                func(token string) string { return `"` + token + `"` },
	"JSON":                  func(token string) string { return `{"token":"` + token + `","x":1}` },
	"escaped JSON":          func(token string) string { return `{\"token\":\"` + token + `\"}` },
	"header":                func(token string) string { return "Authorization: Bearer " + token },
	"scheme":                func(token string) string { return "bearer " + token },
	"name before it":        func(token string) string { return "TOKEN_" + token },
	"assignment":            func(token string) string { return "export TOKEN=" + token + ";" },
	"query":                 func(token string) string { return "?token=" + token + "&x=1" },
	"query in a query":      func(token string) string { return "next=%3Ftoken%3D" + token + "%26x%3D1" },
	"lower case escape":     func(token string) string { return "token%3d" + token + "%0a" },
	"escaped line break":    func(token string) string { return `\n` + token + `\n` },
	"letters before it":     func(token string) string { return "ab" + token },
	"many letters":          func(token string) string { return strings.Repeat("ab9", 100) + token },
	"letters behind it":     func(token string) string { return token + "abc" },
	"digits around it":      func(token string) string { return "0" + token + "0" },
	"underscores around it": func(token string) string { return "_" + token + "_" },
	"a mark before it":      func(token string) string { return "_ksk1_" + token },
	"half of one before it": func(token string) string { return token[:len(token)-1] + "_" + token },
	"its middle before it":  func(token string) string { return token[:len(token)-56] + token },
	"invisible":             func(token string) string { return "\ufeff" + token + "\u200b" },
	"not UTF-8":             func(token string) string { return "\xff" + token + "\xff" },
}
