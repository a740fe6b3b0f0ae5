//! What is reachable, permitted and configured, for whoever sets Rug up.

use crate::client::Client;
use crate::config::Service;
use crate::error::Error;
use crate::network::NewPort;

/// What settings name, to be looked for.
#[derive(Clone, Debug, Default)]
pub struct CheckRequest {
    /// The management network, by name or id.
    pub management_network: Option<String>,
    /// Images, by name or id.
    pub images: Vec<String>,
    /// Flavors, by name or id.
    pub flavors: Vec<String>,
    /// Make a port without port security on the management network, and delete it.
    pub try_port: bool,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub what: String,
    /// How it is, or what is wrong.
    pub result: Result<String, String>,
}

fn finding(what: impl Into<String>, result: Result<String, Error>) -> Finding {
    Finding { what: what.into(), result: result.map_err(|error| error.to_string()) }
}

/// Extensions of Neutron that are used.
const EXTENSIONS: [&str; 4] = ["port-security", "standard-attr-description", "binding", "allowed-address-pairs"];

/// Looks at everything. What depends on what failed is left out.
pub async fn check(client: &Client, request: &CheckRequest) -> Vec<Finding> {
    let mut found = Vec::new();
    let identity = client.identity().await;
    let is_someone = identity.is_ok();
    found.push(finding(
        format!("token of {}", client.cloud().auth_url),
        identity.map(|who| {
            format!("user {} in project {} ({}), roles {}", who.user, who.project, who.project_id, who.roles.join(", "))
        }),
    ));
    if !is_someone {
        return found;
    }
    for service in Service::ALL {
        found.push(finding(format!("endpoint of {}", service.as_str()), client.address(service).await));
    }
    let (compute, network) = (client.compute(), client.network());
    found.push(finding("version of Nova", compute.version().await));
    let count = |n: usize, things: &str| format!("{n} {things}");
    found.push(finding(
        "list servers",
        compute.servers(&[("name", "^rug-")]).await.map(|all| count(all.len(), "of Rug")),
    ));
    found.push(finding("list server groups", compute.server_groups().await.map(|all| count(all.len(), "groups"))));
    found.push(finding(
        "list ports",
        network.ports(&[("device_owner", "network:rug")]).await.map(|all| count(all.len(), "of Rug, not plugged")),
    ));
    found.push(extensions(client).await);
    let flavors = compute.flavors().await;
    match &flavors {
        Ok(all) => {
            for name in &request.flavors {
                let known = all.iter().find(|flavor| flavor.name == *name || flavor.id == *name);
                let result = known.map(|flavor| flavor.id.clone()).ok_or_else(|| "there is none".to_owned());
                found.push(Finding { what: format!("flavor {name}"), result });
            }
        }
        Err(error) => found.push(finding("list flavors", Err(error.clone()))),
    }
    for name in &request.images {
        found.push(finding(format!("image {name}"), client.image().find(name).await.map(|image| image.id.to_string())));
    }
    if let Some(name) = &request.management_network {
        management(client, name, request.try_port, &mut found).await;
    }
    found
}

async fn extensions(client: &Client) -> Finding {
    let what = "extensions of Neutron";
    match client.network().extensions().await {
        Err(error) => finding(what, Err(error)),
        Ok(known) => {
            let missing: Vec<&str> = EXTENSIONS.into_iter().filter(|alias| !known.contains_key(*alias)).collect();
            let result = if missing.is_empty() {
                Ok(EXTENSIONS.join(", "))
            } else {
                Err(format!("missing: {}", missing.join(", ")))
            };
            Finding { what: what.to_owned(), result }
        }
    }
}

async fn management(client: &Client, name: &str, try_port: bool, found: &mut Vec<Finding>) {
    let network = client.network();
    let what = format!("management network {name}");
    let mut all = match network.networks(&[("name", name)]).await {
        Ok(all) => all,
        Err(error) => return found.push(finding(what, Err(error))),
    };
    if let (true, Ok(id)) = (all.is_empty(), name.parse())
        && let Ok(Some(one)) = network.network(&id).await
    {
        all.push(one);
    }
    let [one] = all.as_slice() else {
        let problem = if all.is_empty() { "there is none".to_owned() } else { format!("{} have the name", all.len()) };
        return found.push(Finding { what, result: Err(problem) });
    };
    let subnets = network.subnets(&[("network_id", one.id.as_str())]).await;
    let subnets = subnets.map(|all| all.into_iter().map(|subnet| subnet.cidr).collect::<Vec<_>>());
    let result = match subnets {
        Ok(all) if all.is_empty() => Err("it has no subnet: instances would have no address there".to_owned()),
        Ok(all) => Ok(format!("{} with {}", one.id, all.join(", "))),
        Err(error) => Err(error.to_string()),
    };
    found.push(Finding { what, result });
    if try_port {
        let new = NewPort {
            network: one.id.to_string(),
            name: "RUG:CHECK".to_owned(),
            device_owner: "network:rug".to_owned(),
            port_security: Some(false),
            security_groups: Some(Vec::new()),
            ..NewPort::default()
        };
        let made = network.create_port(&new).await;
        let id = made.as_ref().ok().map(|port| port.id.clone());
        found.push(finding("make a port without port security", made.map(|port| port.id.to_string())));
        if let Some(id) = id {
            found.push(finding("delete it", network.delete_port(&id).await.map(|()| "gone".to_owned())));
        }
    }
}
