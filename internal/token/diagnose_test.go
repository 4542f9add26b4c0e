package token

import (
	"strings"
	"testing"
)

func TestDiagnoseNamesTheMistake(t *testing.T) {
	end := len(vector) - 1
	for name, test := range map[string]struct{ text, want string }{
		"a token":             {vector, ""},
		"empty":               {"", "is empty"},
		"spaces":              {" \t", "has nothing but white space"},
		"header":              {"Authorization: Bearer " + vector, "is a whole header line"},
		"Bearer":              {"Bearer " + vector, "begins with Bearer"},
		"bearer, no token":    {"bearer", "begins with Bearer"},
		"quoted":              {`"` + vector + `"`, "is quoted"},
		"one quote":           {vector + `'`, "is quoted"},
		"typographic quotes":  {"“" + vector + "”", "is quoted"},
		"space before":        {" " + vector, "begins with white space"},
		"line break behind":   {vector + "\n", "ends with white space"},
		"line break inside":   {vector[:40] + "\n" + vector[40:], "has a line break inside"},
		"space inside":        {vector[:40] + " " + vector[40:], "has white space inside"},
		"no-break space":      {vector[:40] + "\u00a0" + vector[40:], "has white space inside"},
		"something else":      {"nonsense", `has no "_ksk1_" in it`},
		"beginning missing":   {vector[20:], `has no "_ksk1_" in it`},
		"end missing":         {vector[:end], "is 1 character too short"},
		"most missing":        {vector[:20], "characters too short"},
		"something behind":    {vector + "ab", "is 2 characters too long"},
		"letter changed":      {vector[:end] + "K", "has a wrong checksum"},
		"letters swapped":     {swapped(vector, 50), "has a wrong checksum"},
		"another prefix":      {"other" + vector[len("scribe"):], "has a wrong checksum"},
		"no prefix":           {vector[len("scribe"):], "has something other than a prefix"},
		"prefix with capital": {"S" + vector[1:], "has something other than a prefix"},
		"foreign character":   {vector[:50] + "é" + vector[51:], "has a character in it that no token has"},
		"invisible character": {vector[:50] + "\u200b" + vector[50:], "has a character in it that no token has"},
		"not UTF-8":           {vector[:50] + "\xff" + vector[51:], "has a character in it that no token has"},
		"letter moved":        {vector[:20] + vector[21:29] + "x_" + vector[29:len(vector)-1], "has no underscore between key id and secret"},
		"underscore inside":   {vector[:50] + "_" + vector[51:], "has an underscore where no token has one"},
	} {
		t.Run(name, func(t *testing.T) {
			got, malformed := Diagnose(test.text)
			if !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if want := test.want != "" && !strings.Contains(test.want, "has no \"_ksk1_\""); malformed != want {
				t.Errorf("malformed is %t, want %t", malformed, want)
			}
		})
	}
}

func swapped(text string, at int) string {
	return text[:at] + text[at+1:at+2] + text[at:at+1] + text[at+2:]
}

// FuzzDiagnose: what Parse refuses has a problem, and no problem shows the text.
func FuzzDiagnose(f *testing.F) {
	for _, text := range []string{vector, "", "Bearer " + vector, `"` + vector + `"`, vector[:40], vector + "x", "\xff_ksk1_"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, malformed := Diagnose(text)
		if _, err := Parse(text); (err == nil) != (got == "") || err == nil && malformed || In(text) && malformed != (err != nil) {
			t.Fatalf("%q: got %q, and Parse says %v", text, got, err)
		}
		const window = 12 // longer than every word of the answers
		for at := 0; at+window <= len(text); at++ {
			if part := text[at : at+window]; strings.Contains(got, part) && allBase62(part) {
				t.Fatalf("%q shows a part of the text", got)
			}
		}
	})
}
