//! What a worker says about its drivers, on the wire: in its `Hello`, and for clients of the admin API.

use common::driver::{DriverCapabilities, DriverName, DriverOffers, MAX_DRIVERS, PreviousOffers};
use common::kind::KindName;
use common::site::{SITE_RULE, STATE_DIR_RULE, is_state_dir};

use super::scalar::duration_to_wire;
use super::worker::{Reader, WireError};
use crate::admin::v1 as wire;
use crate::worker::v1::Profile;

/// Most kinds that one driver can name; more than there will ever be.
const MAX_KINDS: usize = 256;

/// Writes what a worker offers.
#[must_use]
pub fn offers_to_wire(offers: &DriverOffers) -> Vec<wire::DriverOffer> {
    let one = |(name, capabilities): (&DriverName, &DriverCapabilities)| wire::DriverOffer {
        name: name.to_string(),
        state_dir: capabilities.state_dir.clone(),
        fence_delay: capabilities.fence_delay.map(duration_to_wire),
        plugs_ports: capabilities.plugs_ports,
        judges: capabilities.judges,
        logs: capabilities.logs,
        kinds: capabilities.kinds.iter().map(|kind| kind.as_str().to_owned()).collect(),
        site: capabilities.site.map(|id| id.to_string()).unwrap_or_default(),
    };
    offers.iter().map(one).collect()
}

impl Reader {
    /// The drivers of a profile. Workers of the version before list names, fence delays and one directory.
    pub(super) fn offers(self, profile: &mut Profile) -> Result<DriverOffers, WireError> {
        let offers = std::mem::take(&mut profile.offers);
        if offers.is_empty() {
            return self.previous_offers(profile);
        }
        if offers.len() > MAX_DRIVERS {
            let problem = format!("has {} entries, at most {MAX_DRIVERS} are allowed", offers.len());
            return Err(self.error("profile.offers", problem));
        }
        let mut read = std::collections::BTreeMap::new();
        for (i, offer) in offers.into_iter().enumerate() {
            let at = |field: &str| format!("profile.offers[{i}].{field}");
            let name: DriverName = offer.name.parse().map_err(|e| self.error(at("name"), e))?;
            if read.insert(name, self.capabilities(at, offer)?).is_some() {
                return Err(self.error(at("name"), "is offered twice"));
            }
        }
        Ok(read.into_iter().collect())
    }

    fn capabilities(
        self,
        at: impl Fn(&str) -> String,
        offer: wire::DriverOffer,
    ) -> Result<DriverCapabilities, WireError> {
        if offer.state_dir.as_ref().is_some_and(|dir| !dir.is_empty() && !is_state_dir(dir)) {
            return Err(self.error(at("state_dir"), STATE_DIR_RULE));
        }
        if offer.kinds.len() > MAX_KINDS {
            return Err(self.error(at("kinds"), format!("has more than {MAX_KINDS} entries")));
        }
        let site = match offer.site.as_str() {
            "" => None,
            id => Some(id.parse().map_err(|_| self.error(at("site"), SITE_RULE))?),
        };
        let delay = offer.fence_delay.map(|delay| self.wait(at("fence_delay"), Some(delay)));
        Ok(DriverCapabilities {
            state_dir: offer.state_dir,
            site,
            keeps_host: false,
            fence_delay: delay.transpose()?,
            plugs_ports: offer.plugs_ports,
            judges: offer.judges,
            logs: offer.logs,
            // A newer worker may run kinds that this version has never heard of, and has no appliances of.
            kinds: offer.kinds.iter().filter_map(|kind| KindName::find(kind)).collect(),
        })
    }

    fn previous_offers(self, profile: &mut Profile) -> Result<DriverOffers, WireError> {
        let state_dir = std::mem::take(&mut profile.state_dir);
        if !state_dir.is_empty() && !is_state_dir(&state_dir) {
            return Err(self.error("profile.state_dir", STATE_DIR_RULE));
        }
        let mut previous = PreviousOffers { state_dir, ..PreviousOffers::default() };
        // Names that are none are left out, as that version did with names that it did not know.
        previous.drivers = profile.drivers.iter().filter_map(|name| name.parse().ok()).collect();
        for (name, delay) in std::mem::take(&mut profile.holds) {
            if let Ok(driver) = name.parse() {
                previous.fence_delays.insert(driver, self.wait(format!("profile.holds[{name}]"), Some(delay))?);
            }
        }
        Ok(previous.read())
    }
}
