package keys

import "testing"

// FuzzParseAuditCursor: a text is a cursor only if it is the one that a cursor is written as.
func FuzzParseAuditCursor(f *testing.F) {
	for _, text := range []string{"1", "12.3", "0", "-1", "1.0", "1.", "+1", "01", "1.-1", "1.2.3", "9223372036854775808"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		cursor, ok := parseAuditCursor(text)
		if ok && (cursor.String() != text || cursor.before < 1 || cursor.passed < 0) {
			t.Errorf("%q is %+v", text, cursor)
		}
	})
}
