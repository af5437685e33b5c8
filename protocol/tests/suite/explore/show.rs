//! A world in a few lines, for the end of a counterexample.

use std::fmt;

use super::process::Membership;
use super::world::World;

pub struct ShownWorld<'a>(pub &'a World);

impl fmt::Display for ShownWorld<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.0;
        writeln!(
            f,
            "then: supervisor {:?}, phase {}, {:?}, incumbent {:?}, successor {:?}, wanted {}, unreported {}, lock {:?}, \
             steering {}, share {:?}, outgoing {:?}, writing {:?}, {:?}",
            world.supervisor,
            world.machine.phase(),
            world.roles,
            world.machine.incumbent(),
            world.machine.successor(),
            world.journal.standing.wanted,
            world.waiting,
            world.lock,
            world.steering,
            world.share,
            world.machine.outgoing(),
            world.writing,
            world.journal,
        )?;
        for (at, process) in world.existing() {
            let state = match &process.membership {
                Membership::Stranger { greeted } => format!("Stranger {{ greeted: {greeted} }}"),
                Membership::Welcomed(machine) => format!("{:?}", machine.state()),
            };
            writeln!(
                f,
                "      process {at}: {state}, {:?}, code {:?}, next {:?}, accepts {}, lease {}, waits {}, slot {}, \
                 channel {}/{}, inbox {}, outbox {}, calls {}",
                process.status,
                process.code,
                process.next,
                process.accepts,
                process.lease,
                process.waits,
                process.slot,
                process.line().up,
                process.line().down,
                process.channel.inbox.len(),
                process.line().outbox.len(),
                process.calls.len(),
            )?;
        }
        Ok(())
    }
}
