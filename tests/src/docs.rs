//! The commands and outputs of the documentation, so that tests can run them.
//!
//! A block of a page that begins with "```console" has commands, each after `$ `, and below them what they print. The line
//! above the block says where it can be tried: `<!-- run: NAME -->`, with the name of a set-up that a test makes, or `<!-- not run: WHY -->`.
//! A reader of the page sees neither.
//!
//! What a page shows was printed by somebody's cluster, so that numbers, ids, durations and times are others on each run. Everything else
//! has to be there, line by line; see [`shape`]. `...` in a line of its own stands for lines that the page leaves out. A block with
//! `<!-- run: NAME, varies -->` shows rows that depend on chance: of those, lines without a number have to be there.

pub mod blocks;
pub mod shape;
pub mod shell;
