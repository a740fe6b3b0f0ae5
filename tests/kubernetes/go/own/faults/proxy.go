package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"
	"time"
)

type (
	connection struct{}
	watch      struct{}
)

// Proxy forwards requests to the API server, but for what rules say.
type Proxy struct {
	rules    *Rules
	tokens   map[string]string
	upstream *httputil.ReverseProxy
	mutex    sync.Mutex
	open     map[*exchange]bool
}

// exchange is a request that is not answered yet, or a watch.
type exchange struct {
	request Request
	conn    net.Conn
	// Closed to end a watch with an error event; nil for what is no watch.
	expire chan struct{}
	once   sync.Once
}

func (proxy *Proxy) ServeHTTP(answer http.ResponseWriter, request *http.Request) {
	understood := understand(request, proxy.tokens)
	one := &exchange{request: understood, conn: request.Context().Value(connection{}).(net.Conn)}
	if understood.Verb == "watch" {
		one.expire = make(chan struct{})
	}
	proxy.keep(one, true)
	defer proxy.keep(one, false)
	recorder := &recorder{ResponseWriter: answer}
	defer func() { proxy.rules.count(understood, recorder.code) }()

	rule, found := proxy.rules.pick(understood)
	if found && rule.DelayMS > 0 && !sleep(request.Context(), rule.delay()) {
		return
	}
	if found && rule.Forward && (rule.Cut || rule.Hang || rule.Status != 0) {
		proxy.upstream.ServeHTTP(&discarded{header: http.Header{}}, request)
	}
	switch {
	case found && rule.Cut:
		_ = one.conn.Close()
		panic(http.ErrAbortHandler)
	case found && rule.Hang:
		<-request.Context().Done()
	case found && rule.Status != 0:
		rule.refuse(recorder)
	default:
		proxy.upstream.ServeHTTP(recorder, request.WithContext(context.WithValue(request.Context(), watch{}, one)))
	}
}

func sleep(ctx context.Context, duration time.Duration) bool {
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (proxy *Proxy) keep(one *exchange, open bool) {
	proxy.mutex.Lock()
	defer proxy.mutex.Unlock()
	if open {
		proxy.open[one] = true
	} else {
		delete(proxy.open, one)
	}
}

// each calls a function for every exchange that a pattern describes, and returns their number.
func (proxy *Proxy) each(pattern Request, act func(*exchange)) int {
	proxy.mutex.Lock()
	defer proxy.mutex.Unlock()
	count := 0
	for one := range proxy.open {
		if pattern.matches(one.request) {
			act(one)
			count++
		}
	}
	return count
}

// cut closes connections at once, whatever else goes over them.
func (proxy *Proxy) cut(pattern Request) int {
	return proxy.each(pattern, func(one *exchange) { _ = one.conn.Close() })
}

// expire ends watches with an event that says that their resource version is too old.
func (proxy *Proxy) expire(pattern Request) int {
	pattern.Verb = "watch"
	return proxy.each(pattern, func(one *exchange) { one.once.Do(func() { close(one.expire) }) })
}

// watched puts the body of a watch's answer behind one that can be ended.
func watched(response *http.Response) error {
	one, found := response.Request.Context().Value(watch{}).(*exchange)
	if !found || one.expire == nil || response.StatusCode != http.StatusOK {
		return nil
	}
	reader, writer := io.Pipe()
	body := response.Body
	lines := make(chan []byte)
	done := make(chan struct{})
	go func() {
		defer close(lines)
		buffered := bufio.NewReaderSize(body, 64<<10)
		for {
			line, err := buffered.ReadBytes('\n')
			if len(line) > 0 {
				select {
				case lines <- line:
				case <-done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer body.Close()
		defer close(done)
		for {
			select {
			case line, more := <-lines:
				if !more {
					_ = writer.Close()
					return
				}
				if _, err := writer.Write(line); err != nil {
					return
				}
			case <-one.expire:
				event, _ := json.Marshal(map[string]any{"type": "ERROR", "object": status(410, 0, "too old resource version: 1 (2)")})
				_, _ = writer.Write(append(event, '\n'))
				_ = writer.Close()
				return
			}
		}
	}()
	response.Body = struct {
		io.Reader
		io.Closer
	}{reader, closer(func() error { return errors.Join(reader.Close(), body.Close()) })}
	return nil
}

type closer func() error

func (closer closer) Close() error { return closer() }

// recorder remembers the code of an answer.
type recorder struct {
	http.ResponseWriter
	code int
}

func (recorder *recorder) WriteHeader(code int) {
	recorder.code = code
	recorder.ResponseWriter.WriteHeader(code)
}

func (recorder *recorder) Write(data []byte) (int, error) {
	if recorder.code == 0 {
		recorder.code = http.StatusOK
	}
	return recorder.ResponseWriter.Write(data)
}

// Unwrap lets the reverse proxy flush and take connections over.
func (recorder *recorder) Unwrap() http.ResponseWriter { return recorder.ResponseWriter }

// discarded is an answer that nobody gets.
type discarded struct{ header http.Header }

func (discarded *discarded) Header() http.Header            { return discarded.header }
func (discarded *discarded) Write(data []byte) (int, error) { return len(data), nil }
func (discarded *discarded) WriteHeader(int)                {}
