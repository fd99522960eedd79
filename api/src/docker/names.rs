//! Names for containers that were given none: an adjective and a noun, drawn from the container's id.

use skep_proto::model::ContainerId;

const ADJECTIVES: [&str; 32] = [
    "amber", "bold", "brisk", "busy", "calm", "clever", "curious", "dapper", "eager", "fond", "gentle", "golden",
    "happy", "honest", "humming", "jolly", "keen", "kind", "lively", "lucid", "mellow", "nimble", "patient", "quiet",
    "rapid", "silent", "steady", "sunny", "swift", "tidy", "vivid", "warm",
];
const NOUNS: [&str; 32] = [
    "aster", "beacon", "bee", "birch", "bloom", "brook", "clover", "comb", "cricket", "daisy", "drone", "fern",
    "finch", "forager", "hazel", "heather", "hive", "hollow", "honey", "larch", "lilac", "linden", "maple", "meadow",
    "nectar", "orchard", "pollen", "poppy", "sedge", "thyme", "wax", "willow",
];

/// A name for the container; `attempt` above 0 adds digits of the id, for when the name is taken.
pub(crate) fn draw(id: ContainerId, attempt: u32) -> String {
    let pick = |byte: u8, words: &[&'static str; 32]| words[usize::from(byte) % 32];
    let name = format!("{}_{}", pick(id.0[0], &ADJECTIVES), pick(id.0[1], &NOUNS));
    if attempt == 0 { name } else { format!("{name}_{}", &id.short()[4..]) }
}
