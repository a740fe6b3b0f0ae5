// Programs of the laboratory that are our own; the standard library is all they need.
module rug.dev/tests/kubernetes/own

go 1.26.0
