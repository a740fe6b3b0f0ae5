//! Routers of Neutron, with a real Keystone, Neutron, Nova and RabbitMQ (`tests/openstack/lab`) that are spoken to as a tenant does.
//!
//! Run by `make test-openstack`, which starts the laboratory; without it every test says that it was skipped. One test at a time: they kill
//! what all of them use.

mod cli;
mod hypervisor;
mod routers;
mod source;
