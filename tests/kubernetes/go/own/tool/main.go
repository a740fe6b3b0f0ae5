// Program tool is all that is in the laboratory's own image: what containers of tests do, and the container that keeps a pod's network.
//
//	tool pause                 waits to be ended, and reaps children
//	tool sleep SECONDS         ends with 0 when told to end
//	tool stubborn SECONDS      does not end when told to
//	tool exit CODE [SECONDS]   ends by itself
//	tool eat MIB               takes that much memory and waits
//	tool serve PORT            answers HTTP: /env, /files/PATH, /healthz; /fail and /mend change what /healthz answers, /exit/CODE ends it;
//	                           /metrics exports lab_value, which /set/NUMBER changes
//	tool fetch URL             prints an answer; fails when there is none
//	tool env                   prints the environment
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

func main() {
	words := append(os.Args[1:], "", "")
	switch words[0] {
	case "pause":
		pause()
	case "sleep":
		ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		wait(ended, words[1])
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		wait(context.Background(), words[1])
	case "exit":
		wait(context.Background(), words[2])
		os.Exit(number(words[1]))
	case "eat":
		eat(number(words[1]))
	case "serve":
		serve(words[1])
	case "fetch":
		fetch(words[1])
	case "env":
		fmt.Println(strings.Join(os.Environ(), "\n"))
	default:
		fmt.Fprintf(os.Stderr, "tool: cannot %q\n", words[0])
		os.Exit(2)
	}
}

func number(word string) int {
	found, err := strconv.Atoi(word)
	if err != nil && word != "" {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	return found
}

// pause is what keeps a pod's namespaces; as their first process it has to reap.
func pause() {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGCHLD)
	for one := range signals {
		if one != syscall.SIGCHLD {
			return
		}
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
				break
			}
		}
	}
}

func wait(ended context.Context, seconds string) {
	select {
	case <-time.After(time.Duration(number(seconds)) * time.Second):
	case <-ended.Done():
	}
}

func eat(mib int) {
	fmt.Printf("taking %d MiB\n", mib)
	all := [][]byte{}
	for range mib {
		one := make([]byte, 1<<20)
		for index := 0; index < len(one); index += 4096 {
			one[index] = 1
		}
		all = append(all, one)
	}
	fmt.Printf("took %d MiB\n", len(all))
	time.Sleep(time.Hour)
}

func serve(port string) {
	failing := atomic.Bool{}
	http.HandleFunc("/healthz", func(answer http.ResponseWriter, _ *http.Request) {
		if failing.Load() {
			answer.WriteHeader(http.StatusInternalServerError)
		}
	})
	http.HandleFunc("/fail", func(http.ResponseWriter, *http.Request) { failing.Store(true) })
	http.HandleFunc("/mend", func(http.ResponseWriter, *http.Request) { failing.Store(false) })
	value := atomic.Int64{}
	http.HandleFunc("/set/{number}", func(_ http.ResponseWriter, request *http.Request) {
		value.Store(int64(number(request.PathValue("number"))))
	})
	http.HandleFunc("/metrics", func(answer http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintf(answer, "# TYPE lab_value gauge\nlab_value %d\n", value.Load())
	})
	http.HandleFunc("/exit/{code}", func(_ http.ResponseWriter, request *http.Request) { os.Exit(number(request.PathValue("code"))) })
	http.HandleFunc("/env", func(answer http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(answer, strings.Join(os.Environ(), "\n"))
	})
	http.HandleFunc("/files/{path...}", func(answer http.ResponseWriter, request *http.Request) {
		http.ServeFile(answer, request, "/"+request.PathValue("path"))
	})
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		name, _ := os.Hostname()
		_, _ = fmt.Fprintln(answer, name)
	})
	go func() {
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
		<-signals
		os.Exit(0)
	}()
	fmt.Println(http.ListenAndServe(":"+port, nil))
	os.Exit(1)
}

func fetch(url string) {
	client := http.Client{Timeout: 10 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer answer.Body.Close()
	_, _ = io.Copy(os.Stdout, answer.Body)
	if answer.StatusCode >= http.StatusBadRequest {
		os.Exit(1)
	}
}
