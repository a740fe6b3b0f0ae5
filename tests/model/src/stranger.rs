//! A stranger: somebody who can open a stream and knows everything of a life but its secret. A liar: a life that claims to
//! own what others were granted.

use common::Life;
use common::session::{Ack, Envelope, Hello, OwnedGrant, ToCoordinator};
use coordinator_core::machine::Event;

use crate::promises::{Promise, Wrong};
use crate::setup::Setup;
use crate::state::ModelState;

/// What is said, on a stream of its own and with the number that the worker would use next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StrangerWords {
    /// `Hello` that lists nothing, and the answer to its welcome: everything the life owns would be free.
    OwnsNothing,
    /// `Hello`, and that the life leaves: others would act at once.
    Leaves,
    /// `Hello` of a life that has met a higher term.
    MetMore,
    /// With the secret of the life: `Hello` that lists what others were granted, as the table has it.
    Claims,
}

impl StrangerWords {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OwnsNothing, Self::Leaves, Self::MetMore, Self::Claims];
}

impl ModelState {
    /// A leader hears a stranger who speaks for the life of a worker, with the secret of another one or with none.
    pub(crate) fn hear_stranger(&mut self, setup: &Setup, l: usize, w: usize, words: StrangerWords) {
        let Some(term) = self.leaders.get(l).map(|leader| leader.term) else { return };
        let worker = &self.workers[w].value;
        let Some(life) = worker.life() else { return };
        let secret = Setup::secret(w);
        let (next, _) = worker.conversation.assignments().clone().hello(&worker.name, &setup.profile(w), &secret);
        let highest_term = if words == StrangerWords::MetMore { term.next() } else { term };
        let hello = Hello {
            worker: worker.name.clone(),
            profile: setup.profile(w),
            owned: if words == StrangerWords::Claims { self.granted_to_others(l, &life) } else { vec![] },
            released: vec![],
            removed: vec![],
            highest_term,
            secret: match words {
                StrangerWords::Leaves => Some(Setup::secret(w + 1)),
                StrangerWords::Claims => Some(secret),
                StrangerWords::OwnsNothing | StrangerWords::MetMore => None,
            },
            knows_modes: true,
        };
        let before = self.wrong.clone();
        self.next_conn += 1;
        let conn = self.next_conn;
        let from = Envelope { term, incarnation: Some(life.incarnation), stream: next.stream };
        self.lead(l, Event::Received(conn, from, ToCoordinator::Hello(Box::new(hello))), &[]);
        if self.leaders.get(l).is_none_or(|leader| leader.term != term) {
            let text = format!("{term} ends because a stranger in the name of {life} claims to have met more");
            return self.note(Err(Wrong::new(Promise::Stranger, text)));
        }
        match words {
            StrangerWords::OwnsNothing => {
                self.lead(l, Event::Received(conn, from, ToCoordinator::Ack(Ack::default())), &[]);
            }
            StrangerWords::Leaves => self.lead(l, Event::Received(conn, from, ToCoordinator::Leave), &[]),
            StrangerWords::MetMore => {}
            // That it contradicts the table is said, and is no wonder.
            StrangerWords::Claims if self.wrong.as_ref().is_some_and(|w| w.promise == Promise::Contradiction) => {
                self.wrong = before;
            }
            StrangerWords::Claims => {}
        }
        // Whether it was heard or not, its stream is over.
        if let Some(l) = self.leaders.iter().position(|leader| leader.term == term) {
            self.lead(l, Event::Closed(conn), &[]);
        }
    }
    /// What a leader's table gives to other lives.
    fn granted_to_others(&self, l: usize, life: &Life) -> Vec<OwnedGrant> {
        let table = self.leaders[l].machine.value.table();
        let owned = table.iter().filter_map(|(_, row)| {
            let granted = row.state.grant().filter(|granted| !granted.is_of(life))?;
            Some(OwnedGrant { appliance: row.id, token: granted.token, edition: row.edition, mode: row.mode })
        });
        owned.collect()
    }
}
