// SPDX-License-Identifier: Apache-2.0

package telemetry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Format is how a log line is written.
type Format string

// Text is `time<TAB>level<TAB>scope<TAB>message<TAB>key=value ...`; JSON is one object per line.
const (
	Text Format = "text"
	JSON Format = "json"
)

// ParseFormat reads a format's name; "plain", the reference's word, means Text.
func ParseFormat(s string) (Format, error) {
	switch s {
	case "text", "plain":
		return Text, nil
	case "json":
		return JSON, nil
	}
	return "", fmt.Errorf("log format %q: not text or json", s)
}

// NewLogger returns a logger whose lines go to w in order. The attribute "scope" set by [Scope] selects the level and is
// printed in its own place. Lines are written at once, except those of the access log when they come thick and fast: they
// share a write, at most 20 ms late. A process that ends calls [Flush] first; one that is killed loses those.
func NewLogger(w io.Writer, f Format, l *Levels) *slog.Logger {
	return slog.New(&handler{sink: &sink{w: w}, format: f, levels: l, scope: "ztunnel"})
}

// Flush writes the lines that wait. Later ones are written at once, so that none is lost however late it comes. log is of
// [NewLogger], or one made from such; with others it does nothing.
func Flush(log *slog.Logger) error {
	h, ok := log.Handler().(*handler)
	if !ok {
		return nil
	}
	if err := h.sink.end(); err != nil {
		return fmt.Errorf("flush log: %w", err)
	}
	return nil
}

// Scope returns log with its lines in the named scope.
func Scope(log *slog.Logger, name string) *slog.Logger { return log.With("scope", name) }

type handler struct {
	sink   *sink
	format Format
	levels *Levels
	scope  string
	attrs  []slog.Attr
	group  string
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return h.levels.enabled(h.scope, level)
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.attrs = slices.Clone(h.attrs)
	for _, a := range attrs {
		if a.Key == "scope" {
			c.scope = a.Value.String()
			continue
		}
		a.Key = h.group + a.Key
		c.attrs = append(c.attrs, a)
	}
	return &c
}

func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	c.group = h.group + name + "."
	return &c
}

var lines = sync.Pool{New: func() any { b := make([]byte, 0, 1024); return &b }}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	buf := lines.Get().(*[]byte)
	b := (*buf)[:0]
	if h.format == JSON {
		b = h.appendJSON(b, r)
	} else {
		b = h.appendText(b, r)
	}
	b = append(b, '\n')
	err := h.sink.write(b, h.scope == accessScope)
	*buf = b
	lines.Put(buf)
	return err
}

const timeFormat = "2006-01-02T15:04:05.000000Z07:00"

func (h *handler) appendText(b []byte, r slog.Record) []byte {
	b = r.Time.UTC().AppendFormat(b, timeFormat)
	b = append(b, '\t')
	b = append(b, levelName(r.Level)...)
	b = append(b, '\t')
	b = append(b, h.scope...)
	b = append(b, '\t')
	b = append(b, r.Message...)
	separator := byte('\t')
	h.each(r, func(a slog.Attr) {
		b = append(b, separator)
		separator = ' '
		b = append(b, a.Key...)
		b = append(b, '=')
		b = appendTextValue(b, a.Value)
	})
	return b
}

// appendTextValue quotes what is text, so that a value with blanks or line breaks cannot forge a field.
func appendTextValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindString:
		return strconv.AppendQuote(b, v.String())
	case slog.KindDuration:
		return append(b, v.Duration().String()...)
	case slog.KindAny:
		if err, ok := v.Any().(error); ok {
			return strconv.AppendQuote(b, err.Error())
		}
		if s, ok := v.Any().(fmt.Stringer); ok {
			return append(b, s.String()...)
		}
		return strconv.AppendQuote(b, v.String())
	}
	return append(b, v.String()...)
}

func (h *handler) appendJSON(b []byte, r slog.Record) []byte {
	b = append(b, `{"level":"`...)
	b = append(b, levelName(r.Level)...)
	b = append(b, `","time":"`...)
	b = r.Time.UTC().AppendFormat(b, timeFormat)
	b = append(b, `","scope":`...)
	b = appendJSONValue(b, h.scope)
	b = append(b, `,"message":`...)
	b = appendJSONValue(b, r.Message)
	h.each(r, func(a slog.Attr) {
		b = append(b, ',')
		b = appendJSONValue(b, a.Key)
		b = append(b, ':')
		b = appendJSONValue(b, jsonValue(a.Value))
	})
	return append(b, '}')
}

func jsonValue(v slog.Value) any {
	switch x := v.Any().(type) {
	case error:
		return x.Error()
	case time.Duration:
		return x.String()
	case fmt.Stringer:
		return x.String()
	default:
		return x
	}
}

func appendJSONValue(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		text, _ = json.Marshal(fmt.Sprint(v))
	}
	return append(b, text...)
}

// each visits the logger's attributes and then the record's, groups flattened to dotted keys.
func (h *handler) each(r slog.Record, visit func(slog.Attr)) {
	for _, a := range h.attrs {
		flatten("", a, visit)
	}
	r.Attrs(func(a slog.Attr) bool {
		flatten(h.group, a, visit)
		return true
	})
}

func flatten(prefix string, a slog.Attr, visit func(slog.Attr)) {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() == slog.KindGroup {
		for _, inner := range a.Value.Group() {
			flatten(prefix+a.Key+".", inner, visit)
		}
		return
	}
	if a.Key == "" {
		return
	}
	a.Key = prefix + a.Key
	visit(a)
}
