//! What Rug does in a real OpenStack: Keystone, Nova with its fake hypervisor, Neutron, Glance (`tests/openstack/lab`).
//!
//! Run by `make test-openstack`, which starts the laboratory; without it every test says that it was skipped.

mod cluster;
mod driver;
mod lab;
mod metadata;
mod proxy;
mod spares;
