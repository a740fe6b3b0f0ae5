package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Rule says what happens to requests that match.
type Rule struct {
	ID    int     `json:"id"`
	Match Request `json:"match"`
	// Milliseconds before anything else.
	DelayMS int `json:"delay_ms,omitempty"`
	// Answer with this code; 0 forwards the request.
	Status int `json:"status,omitempty"`
	// Seconds in the Retry-After header.
	RetryAfter int `json:"retry_after,omitempty"`
	// Close the connection instead of answering.
	Cut bool `json:"cut,omitempty"`
	// Never answer.
	Hang bool `json:"hang,omitempty"`
	// Forward the request first, so that it takes effect although its client learns nothing of it or reads of a failure.
	Forward bool `json:"forward,omitempty"`
	// For how many requests; 0 is for all.
	Times int `json:"times,omitempty"`
	// Of requests that match, the share this happens to; 0 is for all.
	Share float64 `json:"share,omitempty"`
	// How often it has happened.
	Hits int `json:"hits"`
}

// Rules are all there are, and the counts of requests.
type Rules struct {
	mutex  sync.Mutex
	next   int
	rules  []*Rule
	counts map[counted]int
}

type counted struct {
	User, Agent, Verb, Group, Resource, Subresource string
	Code                                            int
}

func (rules *Rules) add(rule *Rule) {
	rules.mutex.Lock()
	defer rules.mutex.Unlock()
	rules.next++
	rule.ID, rule.Hits = rules.next, 0
	rules.rules = append(rules.rules, rule)
}

// remove removes one rule, or all of them for 0.
func (rules *Rules) remove(id int) {
	rules.mutex.Lock()
	defer rules.mutex.Unlock()
	kept := []*Rule{}
	for _, rule := range rules.rules {
		if id != 0 && rule.ID != id {
			kept = append(kept, rule)
		}
	}
	rules.rules = kept
}

// pick returns a copy of the first rule that applies to a request, and counts that it did.
func (rules *Rules) pick(request Request) (Rule, bool) {
	rules.mutex.Lock()
	defer rules.mutex.Unlock()
	for _, rule := range rules.rules {
		if rule.Times > 0 && rule.Hits >= rule.Times || !rule.Match.matches(request) {
			continue
		}
		if rule.Share > 0 && rand.Float64() >= rule.Share {
			continue
		}
		rule.Hits++
		return *rule, true
	}
	return Rule{}, false
}

// count counts a request by who made it, what it was and how it was answered; 0 is no answer.
func (rules *Rules) count(request Request, code int) {
	rules.mutex.Lock()
	defer rules.mutex.Unlock()
	rules.counts[counted{request.User, request.Agent, request.Verb, request.Group, request.Resource, request.Subresource, code}]++
}

func (rules *Rules) list() ([]byte, error) {
	rules.mutex.Lock()
	defer rules.mutex.Unlock()
	if rules.rules == nil {
		rules.rules = []*Rule{}
	}
	return json.Marshal(rules.rules)
}

func (rules *Rules) requests() ([]byte, error) {
	rules.mutex.Lock()
	defer rules.mutex.Unlock()
	list := []map[string]any{}
	for key, count := range rules.counts {
		list = append(list, map[string]any{"user": key.User, "agent": key.Agent, "verb": key.Verb, "group": key.Group, "resource": key.Resource,
			"subresource": key.Subresource, "code": key.Code, "count": count})
	}
	return json.Marshal(list)
}

func (rules *Rules) forget() {
	rules.mutex.Lock()
	defer rules.mutex.Unlock()
	rules.counts = map[counted]int{}
}

// reasons are what the API server says with a code.
var reasons = map[int]string{400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 409: "Conflict", 410: "Expired", 422: "Invalid",
	429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout"}

// status is a Status as the API server would send it.
func status(code, retryAfter int, message string) map[string]any {
	found := map[string]any{"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure", "message": message,
		"reason": reasons[code], "code": code}
	if retryAfter > 0 {
		found["details"] = map[string]any{"retryAfterSeconds": retryAfter}
	}
	return found
}

// refuse answers a request with the failure that a rule asks for.
func (rule Rule) refuse(answer http.ResponseWriter) {
	if rule.RetryAfter > 0 {
		answer.Header().Set("Retry-After", strconv.Itoa(rule.RetryAfter))
	}
	answer.Header().Set("Content-Type", "application/json")
	answer.WriteHeader(rule.Status)
	_ = json.NewEncoder(answer).Encode(status(rule.Status, rule.RetryAfter, fmt.Sprintf("fault %d of the laboratory", rule.ID)))
}

func (rule Rule) delay() time.Duration {
	return time.Duration(rule.DelayMS) * time.Millisecond
}
