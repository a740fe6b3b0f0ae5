//! Rows of rollouts: what one is as JSON, and how far its appliances are in parts of bounded size, so that progress rewrites
//! little.

use std::collections::{BTreeMap, HashMap};

use common::{ApplianceId, Generation};
use coordinator_core::rollout::{ItemState, Rollout, RolloutItem};
use sea_orm::ConnectionTrait;
use sea_orm::entity::prelude::*;

use super::codec::{Odd, Packer, Unpacker};
use super::dialect::failure;
use super::entities::{rollout_items, rollouts};
use super::error::Error;
use crate::record::{RolloutRecord, StoredRollout};

/// Items of one part.
pub(crate) const PART: usize = 1_000;

/// Format of a part.
const ITEMS: u8 = 1;

/// Tags of items, by their states.
const WAITING: u8 = 1;
const BEGUN: u8 = 2;
const DONE: u8 = 3;
const FAILED: u8 = 4;
const SKIPPED: u8 = 5;
const RETURNING: u8 = 6;
const RETURNED: u8 = 7;
const NOT_RETURNED: u8 = 8;

pub(super) fn from_record(record: &RolloutRecord) -> rollouts::Model {
    let text = serde_json::to_string(record).expect("plain data with text keys always has a JSON form");
    rollouts::Model { id: record.id.simple().to_string(), record: text }
}

/// One part of the items.
pub(super) fn from_items(rollout: Uuid, part: usize, items: &[RolloutItem]) -> rollout_items::Model {
    let mut packer = Packer::default();
    for item in items {
        let (tag, generation) = match item.state {
            ItemState::Waiting => (WAITING, 0),
            ItemState::Begun(generation) => (BEGUN, generation.get()),
            ItemState::Done => (DONE, 0),
            ItemState::Failed => (FAILED, 0),
            ItemState::Skipped => (SKIPPED, 0),
            ItemState::Returning(generation) => (RETURNING, generation.get()),
            ItemState::Returned => (RETURNED, 0),
            ItemState::NotReturned => (NOT_RETURNED, 0),
        };
        // 0 is an image that nobody knows.
        let image = item.former_image.map_or(0, |image| u64::from(image) + 1);
        packer.entry(tag).bytes(item.appliance.as_bytes()).number(generation).number(image);
    }
    let part = i32::try_from(part).expect("fewer than 2^31 parts");
    rollout_items::Model { rollout: rollout.simple().to_string(), part, data: packer.seal(ITEMS, &[]) }
}

fn to_items(data: &[u8]) -> Result<Vec<RolloutItem>, Odd> {
    let (_, [], mut it) = Unpacker::open(data, &[ITEMS])?;
    let mut items = Vec::new();
    while let Some(tag) = it.next_entry()? {
        let appliance = ApplianceId::from_bytes(it.array()?);
        let (generation, image) = (Generation::new(it.number()?), it.number()?);
        let state = match tag {
            WAITING => ItemState::Waiting,
            BEGUN => ItemState::Begun(generation),
            DONE => ItemState::Done,
            FAILED => ItemState::Failed,
            SKIPPED => ItemState::Skipped,
            RETURNING => ItemState::Returning(generation),
            RETURNED => ItemState::Returned,
            NOT_RETURNED => ItemState::NotReturned,
            _ => return Err(Odd(format!("entry of unknown kind {tag}"))),
        };
        let former_image = match image.checked_sub(1) {
            None => None,
            Some(image) => Some(u16::try_from(image).map_err(|_| Odd::new("an image is out of range"))?),
        };
        items.push(RolloutItem { appliance, state, former_image });
    }
    Ok(items)
}

/// All rollouts. One that cannot be read is left out and logged: nothing goes on by itself because of it.
pub(super) async fn read<C: ConnectionTrait>(db: &C) -> Result<Vec<StoredRollout>, Error> {
    let records = rollouts::Entity::find().all(db).await.map_err(|e| failure("read rollouts", &e))?;
    let parts = rollout_items::Entity::find().all(db).await.map_err(|e| failure("read rollouts", &e))?;
    let mut items: HashMap<String, BTreeMap<i32, Vec<u8>>> = HashMap::new();
    for rollout_items::Model { rollout, part, data } in parts {
        items.entry(rollout).or_default().insert(part, data);
    }
    let mut found = Vec::with_capacity(records.len());
    for row in records {
        match to_rollout(&row, items.remove(&row.id).unwrap_or_default()) {
            Ok(rollout) => found.push(rollout),
            Err(reason) => tracing::error!(rollout = row.id, "skipping a rollout that cannot be read: {reason}"),
        }
    }
    Ok(found)
}

fn to_rollout(row: &rollouts::Model, parts: BTreeMap<i32, Vec<u8>>) -> Result<StoredRollout, String> {
    let record: RolloutRecord = serde_json::from_str(&row.record).map_err(|e| e.to_string())?;
    if record.id.simple().to_string() != row.id {
        return Err("it has the id of another one".to_owned());
    }
    let mut items = Vec::new();
    for (expected, (part, data)) in (0..).zip(parts) {
        if part != expected {
            return Err(format!("part {expected} of its appliances is missing"));
        }
        items.extend(to_items(&data).map_err(|odd| odd.0)?);
    }
    if items.len() as u64 != record.items {
        return Err(format!("it has {} of {} appliances", items.len(), record.items));
    }
    if items.iter().any(|item| item.former_image.is_some_and(|image| usize::from(image) >= record.images.len())) {
        return Err("an image is not in its list".to_owned());
    }
    let RolloutRecord { action, policy, state, images, forgiven, .. } = record.clone();
    let rollout = Rollout::restore(action, policy, state, items, images, forgiven);
    Ok(StoredRollout { record, rollout })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_read_as_they_were_written_and_damage_is_found() {
        let state = |n: u64| match n % 8 {
            0 => ItemState::Waiting,
            1 => ItemState::Begun(Generation::new(n)),
            2 => ItemState::Done,
            3 => ItemState::Failed,
            4 => ItemState::Skipped,
            5 => ItemState::Returning(Generation::new(u64::MAX)),
            6 => ItemState::Returned,
            _ => ItemState::NotReturned,
        };
        let item = |n: u64| RolloutItem {
            appliance: ApplianceId::from_u128(n.into()),
            state: state(n),
            former_image: (n > 3).then_some(u16::try_from(n).expect("small")),
        };
        let items: Vec<_> = (0..20).map(item).collect();
        let row = from_items(Uuid::from_u128(7), 3, &items);
        assert_eq!((row.part, to_items(&row.data).expect("readable")), (3, items));
        let mut damaged = row.data.clone();
        damaged[30] ^= 1;
        assert!(to_items(&damaged).is_err());
        assert!(to_items(&row.data[..40]).is_err());
    }
}
