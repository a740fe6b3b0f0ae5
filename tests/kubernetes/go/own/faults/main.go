// Program faults stands in front of an API server and misbehaves on command: it delays requests, answers 409, 429 or 500, cuts connections, lets
// requests take effect and loses their answers, and ends watches with 410. It counts requests by user, verb and resource.
//
// Clients authenticate with bearer tokens, which are forwarded; client certificates end here. The control port speaks JSON over HTTP:
//
//	GET, POST, DELETE /rules, DELETE /rules/ID    see Rule in rules.go; a POST answers with the rule and its ID
//	GET, DELETE /requests                         counts
//	POST /cut, POST /expire                       with a Request as pattern: close connections, end watches; answer with how many
//	POST /down, POST /up                          refuse connections, and listen again
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/csv"
	"encoding/json"
	"flag"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"sync"
	"time"
)

var (
	listen      = flag.String("listen", "127.0.0.1:0", "address for clients")
	control     = flag.String("control", "127.0.0.1:0", "address of the control port")
	upstream    = flag.String("upstream", "", "URL of the API server")
	authority   = flag.String("ca", "", "certificate authority of the API server")
	certificate = flag.String("cert", "", "certificate shown to clients")
	key         = flag.String("key", "", "its key")
	tokenFile   = flag.String("tokens", "", "file of static tokens, as the API server reads it")
)

func main() {
	flag.Parse()
	proxy := &Proxy{rules: &Rules{counts: map[counted]int{}}, tokens: tokens(*tokenFile), upstream: reverse(), open: map[*exchange]bool{}}
	front := &front{handler: proxy}
	must(front.up())
	log.Printf("listening at %s", *listen)
	server := &http.Server{Addr: *control, Handler: handler(proxy, front), ReadHeaderTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func tokens(file string) map[string]string {
	found := map[string]string{}
	if file == "" {
		return found
	}
	opened, err := os.Open(file)
	must(err)
	defer opened.Close()
	reader := csv.NewReader(opened)
	reader.FieldsPerRecord = -1
	records, err := reader.ReadAll()
	must(err)
	for _, record := range records {
		if len(record) > 1 {
			found[record[0]] = record[1]
		}
	}
	return found
}

// reverse is a proxy that changes nothing.
func reverse() *httputil.ReverseProxy {
	target, err := url.Parse(*upstream)
	must(err)
	pem, err := os.ReadFile(*authority)
	must(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	transport := &http.Transport{
		TLSClientConfig:     &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   true,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 100,
	}
	return &httputil.ReverseProxy{
		Rewrite:        func(request *httputil.ProxyRequest) { request.SetURL(target) },
		Transport:      transport,
		FlushInterval:  -1,
		ModifyResponse: watched,
		ErrorHandler: func(answer http.ResponseWriter, request *http.Request, err error) {
			// As if there were no proxy: a server that cannot be reached does not answer.
			log.Printf("%s %s: %v", request.Method, request.URL.Path, err)
			if conn, found := request.Context().Value(connection{}).(net.Conn); found {
				_ = conn.Close()
			}
			panic(http.ErrAbortHandler)
		},
	}
}

// front is the side of the clients, which can be closed and opened.
type front struct {
	handler http.Handler
	mutex   sync.Mutex
	server  *http.Server
}

func (front *front) up() error {
	front.mutex.Lock()
	defer front.mutex.Unlock()
	if front.server != nil {
		return nil
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           front.handler,
		ReadHeaderTimeout: time.Minute,
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, connection{}, conn)
		},
	}
	front.server = server
	go func() { log.Print(server.ServeTLS(listener, *certificate, *key)) }()
	return nil
}

func (front *front) down() error {
	front.mutex.Lock()
	defer front.mutex.Unlock()
	if front.server == nil {
		return nil
	}
	err := front.server.Close()
	front.server = nil
	return err
}

func handler(proxy *Proxy, front *front) http.Handler {
	mux := http.NewServeMux()
	send := func(answer http.ResponseWriter, data []byte, err error) {
		if err != nil {
			http.Error(answer, err.Error(), http.StatusBadRequest)
			return
		}
		answer.Header().Set("Content-Type", "application/json")
		_, _ = answer.Write(data)
	}
	mux.HandleFunc("GET /rules", func(answer http.ResponseWriter, _ *http.Request) {
		data, err := proxy.rules.list()
		send(answer, data, err)
	})
	mux.HandleFunc("POST /rules", func(answer http.ResponseWriter, request *http.Request) {
		rule := &Rule{}
		decoder := json.NewDecoder(request.Body)
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(rule); err != nil {
			send(answer, nil, err)
			return
		}
		proxy.rules.add(rule)
		data, err := json.Marshal(map[string]int{"id": rule.ID})
		send(answer, data, err)
	})
	mux.HandleFunc("DELETE /rules", func(http.ResponseWriter, *http.Request) { proxy.rules.remove(0) })
	mux.HandleFunc("DELETE /rules/{id}", func(answer http.ResponseWriter, request *http.Request) {
		id, err := strconv.Atoi(request.PathValue("id"))
		if err != nil || id == 0 {
			http.Error(answer, "no such rule", http.StatusNotFound)
			return
		}
		proxy.rules.remove(id)
	})
	mux.HandleFunc("GET /requests", func(answer http.ResponseWriter, _ *http.Request) {
		data, err := proxy.rules.requests()
		send(answer, data, err)
	})
	mux.HandleFunc("DELETE /requests", func(http.ResponseWriter, *http.Request) { proxy.rules.forget() })
	matching := func(act func(Request) int) http.HandlerFunc {
		return func(answer http.ResponseWriter, request *http.Request) {
			pattern := Request{}
			decoder := json.NewDecoder(request.Body)
			decoder.DisallowUnknownFields()
			if err := decoder.Decode(&pattern); err != nil {
				send(answer, nil, err)
				return
			}
			data, err := json.Marshal(map[string]int{"count": act(pattern)})
			send(answer, data, err)
		}
	}
	mux.HandleFunc("POST /cut", matching(proxy.cut))
	mux.HandleFunc("POST /expire", matching(proxy.expire))
	mux.HandleFunc("POST /down", func(answer http.ResponseWriter, _ *http.Request) { send(answer, nil, front.down()) })
	mux.HandleFunc("POST /up", func(answer http.ResponseWriter, _ *http.Request) { send(answer, nil, front.up()) })
	return mux
}
