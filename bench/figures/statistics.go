package figures

import (
	"math"
	"slices"
)

// Spread describes a sample.
type Spread struct {
	Median float64 `json:"median"`
	// Between Low and High the true median lies 19 times of 20, for any distribution: they are found
	// by rank. Of fewer than six values they are the minimum and the maximum.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Describe describes a sample. An empty one has the zero Spread.
func Describe(sample []float64) Spread {
	sorted := slices.Sorted(slices.Values(sample))
	count := len(sorted)
	if count == 0 {
		return Spread{}
	}
	rank := max(0, int(float64(count)/2-0.98*math.Sqrt(float64(count))))
	return Spread{
		Median: round((sorted[(count-1)/2] + sorted[count/2]) / 2),
		Low:    round(sorted[rank]),
		High:   round(sorted[count-1-rank]),
	}
}

// Width returns how far Low and High are apart, as a share of the median.
func (s Spread) Width() float64 { return (s.High - s.Low) / s.Median }

func rounded(values []float64) []float64 {
	short := make([]float64, len(values))
	for index, value := range values {
		short[index] = round(value)
	}
	return short
}

// round returns a number with four digits, which are more than any measurement here is worth.
func round(value float64) float64 {
	if value == 0 || math.IsNaN(value) || math.IsInf(value, 0) {
		return 0
	}
	unit := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(value))))
	return math.Round(value*unit) / unit
}
