package keys

import (
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/problem"
)

func checkedName(name string) error {
	var fields problem.Fields
	checkName(&fields, name, policy.Limits{KeyNameCharacters: 128})
	return fields.Err()
}

func TestNamesOfOrdinaryScriptsAreAccepted(t *testing.T) {
	for what, name := range map[string]string{
		"English":                 "nightly deploy (2)",
		"German":                  "Schlüssel für Äußeres",
		"Vietnamese":              "khóa của tôi",
		"Greek":                   "κλειδί",
		"Russian":                 "ключ",
		"Hebrew":                  "מפתח",
		"Hebrew with points":      "מַפְתֵּחַ",
		"Arabic":                  "مفتاح",
		"Persian, non-joiner":     "می\u200cخواهم",
		"Persian, two words":      "کلید خانه\u200cها",
		"Persian, joiner":         "ه\u200d.ق",
		"Urdu":                    "چابی",
		"Hindi":                   "कुंजी",
		"Hindi, half form":        "क्\u200dष",
		"Hindi, no ligature":      "क्\u200cष",
		"Bengali":                 "চাবি র\u200d্যাব",
		"Kannada":                 "ರ\u200d್ಯಾಂಕ್",
		"Sinhala":                 "ශ්\u200dරී",
		"Tamil":                   "திறவுகோல்",
		"Thai":                    "กุญแจ",
		"Khmer":                   "កូនសោ",
		"Chinese":                 "钥匙",
		"Japanese":                "鍵・テスト",
		"Korean":                  "열쇠",
		"Korean, old letters":     "ᄀᆞ",
		"Georgian":                "გასაღები",
		"Amharic":                 "ቁልፍ",
		"emoji":                   "🔑 deploy 🚀",
		"emoji with style":        "❤️ report ☎️",
		"family":                  "👨\u200d👩\u200d👧\u200d👦",
		"profession, skin tone":   "👩🏽\u200d💻",
		"couple with style":       "👩\u200d❤️\u200d👩",
		"flag of a country":       "🇫🇷",
		"rainbow flag":            "🏳️\u200d🌈",
		"flag of Scotland":        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
		"keycap":                  "1️⃣ first",
		"punctuation and symbols": "a·b – “c” © 5€ ½ №",
	} {
		if err := checkedName(NormalName(name)); err != nil {
			t.Errorf("%s, %q: %v", what, name, err)
		}
		if !norm.NFC.IsNormalString(name) && checkedName(name) == nil {
			t.Errorf("%s, %q is accepted as it is and in another form", what, name)
		}
	}
}

func TestNamesThatShowNothingOrHideSomethingAreRefused(t *testing.T) {
	for what, name := range map[string]string{
		"empty":                      "",
		"spaces":                     "   ",
		"space in front":             " a",
		"space behind":               "a ",
		"no-break space":             "a\u00a0b",
		"ideographic space":          "a\u3000b",
		"tab":                        "a\tb",
		"line break":                 "a\nb",
		"NUL":                        "a\x00b",
		"not UTF-8":                  "a\xff",
		"Hangul filler":              "\u3164",
		"Hangul filler inside":       "a\u3164b",
		"halfwidth Hangul filler":    "\uffa0",
		"Hangul choseong filler":     "\u115f",
		"Hangul jungseong filler":    "a\u1160",
		"braille blank":              "\u2800",
		"braille blank inside":       "a\u2800b",
		"Khmer inherent vowel":       "ក\u17b4",
		"Mongolian selector":         "a\u180b",
		"Mongolian vowel separator":  "a\u180eb",
		"musical null notehead":      "\U0001d159",
		"Egyptian blank":             "\U00013441",
		"object replacement":         "\ufffc",
		"grapheme joiner":            "a\u034fb",
		"soft hyphen":                "a\u00adb",
		"zero width space":           "a\u200bb",
		"word joiner":                "a\u2060b",
		"byte order mark":            "\ufeffa",
		"direction mark":             "a\u200e",
		"direction override":         "a\u202eb",
		"direction isolate":          "a\u2066b",
		"invisible times":            "a\u2062b",
		"interlinear annotation":     "a\ufff9b",
		"private use":                "a\ue000",
		"not assigned":               "a\u0378",
		"non-joiner alone":           "\u200c",
		"joiner alone":               "\u200d",
		"non-joiner in Latin":        "a\u200cb",
		"joiner in Latin":            "a\u200db",
		"non-joiner at the end":      "می\u200c",
		"non-joiner in front":        "\u200cمی",
		"non-joiner behind a virama": "क्\u200c",
		"non-joiner twice":           "می\u200c\u200cخواهم",
		"non-joiner beside no joint": "ا\u200cب",
		"joiner between joined":      "ب\u200dب",
		"joiner before a space":      "ا\u200d ب",
		"joiner behind an emoji":     "👩\u200d",
		"joiner before an emoji":     "\u200d👩",
		"joiner of emoji and letter": "👩\u200da",
		"style behind a letter":      "a\ufe0f",
		"style behind a digit":       "1\ufe0f",
		"style in front":             "\ufe0fa",
		"style twice":                "❤\ufe0f\ufe0f",
		"other selector":             "a\ufe00",
		"ideographic selector":       "葛\U000e0100",
		"tag":                        "a\U000e0061",
		"tags of no flag":            "🏴\U000e0061\U000e007f",
		"tags without an end":        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067",
		"tags behind the end":        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f\U000e0061",
		"a mark alone":               "\u0301",
		"a mark in front":            "\u0301a",
		"not composed":               "e\u0301",
		"a token":                    "scribe_ksk1_9fQ2mXc7Lr0TzB4w_0",
	} {
		if checkedName(name) == nil {
			t.Errorf("%s, %q is accepted", what, name)
		}
		if what != "not composed" && checkedName(NormalName(name)) == nil {
			t.Errorf("%s, %q is accepted in its normal form", what, name)
		}
	}
}

func TestLabelValuesHideNothing(t *testing.T) {
	for value, fine := range map[string]bool{
		"": true, "web": true, "👩\u200d💻": true, "e\u0301": true,
		"a\u3164": false, "a\u200b": false, "a\u200db": false, "\n": false, "\xff": false,
	} {
		var fields problem.Fields
		checkLabels(&fields, map[string]string{"team": value})
		if (fields.Err() == nil) != fine {
			t.Errorf("%q: %v", value, fields.Err())
		}
	}
}

// FuzzName: an accepted name is valid, and in its normal form. With a character at either end that shows
// nothing by itself, it is refused.
func FuzzName(f *testing.F) {
	f.Fuzz(func(t *testing.T, name string) {
		name = NormalName(name)
		if checkedName(name) != nil {
			return
		}
		if !utf8.ValidString(name) || NormalName(name) != name || strings.TrimSpace(name) != name || name == "" {
			t.Fatalf("%q is accepted", name)
		}
		for _, unseen := range []string{"\u200b", "\u200d", "\u200c", "\ufe00", "\u3164", "\u2800", "\n", " ", "\u00ad"} {
			if checkedName(unseen+name) == nil {
				t.Fatalf("%q is accepted", unseen+name)
			}
			if unseen != "\u200d" && checkedName(name+unseen) == nil {
				t.Fatalf("%q is accepted", name+unseen)
			}
		}
	})
}
