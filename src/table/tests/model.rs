//! Random work on one item against a byte vector: written, cut, read, flushed, opened again, mounted again in good order
//! or after a kill, renamed, linked and unlinked.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Step {
    Write {
        offset: u64,
        length: usize,
    },
    Truncate(u64),
    Punch {
        offset: u64,
        length: u64,
    },
    Sync,
    /// Drop the item and open it again.
    Reopen,
    /// Put all that is pending in place.
    Checkpoint,
    /// Stop and mount again, in good order or not.
    Remount {
        clean: bool,
    },
    Rename,
    Link,
    Unlink,
    /// A step of re-encryption, under a new key where the last one has been carried out.
    ReEncrypt,
}

/// Sizes and offsets near those where something changes.
pub(super) fn spot() -> impl Strategy<Value = u64> {
    let edges: Vec<u64> = vec![0, 1, 3551, 3552, 4095, 4096, 4097, 8192, 112 * 4096, 240 * 4096];
    let near = (prop::sample::select(edges), -20i64..20).prop_map(|(edge, by)| edge.saturating_add_signed(by));
    prop_oneof![3 => near, 1 => 0u64..20_000, 1 => 0u64..1_100_000]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1usize..50, 3 => 1usize..10_000, 1 => 1usize..300_000, 1 => Just(4096), 1 => Just(131_072)]
}

pub(super) fn steps(most: usize) -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (spot(), length()).prop_map(|(offset, length)| Step::Write { offset, length }),
        3 => spot().prop_map(Step::Truncate),
        1 => (spot(), length()).prop_map(|(offset, length)| Step::Punch { offset, length: length as u64 }),
        3 => Just(Step::Sync),
        2 => Just(Step::Reopen),
        1 => Just(Step::Checkpoint),
        2 => any::<bool>().prop_map(|clean| Step::Remount { clean }),
        1 => Just(Step::Rename),
        1 => Just(Step::Link),
        1 => Just(Step::Unlink),
        4 => Just(Step::ReEncrypt),
    ];
    prop::collection::vec(step, 1..most)
}

/// The item and what it must hold.
pub(super) struct Run {
    pub(super) root: Arc<dyn Dir>,
    pub(super) mount: Mount,
    pub(super) item: Arc<Item>,
    pub(super) model: Vec<u8>,
    /// The names that lead to the item; it is used under the last.
    pub(super) names: Vec<String>,
    epoch: u64,
    unclean: Vec<u64>,
    seed: u8,
    next_name: usize,
    /// The newest version of the table's key.
    key: u32,
}

impl Run {
    pub(super) fn new(root: &Arc<dyn Dir>) -> Self {
        let mount = Mount::create(root);
        let item = mount.empty("name0");
        Self {
            root: Arc::clone(root),
            mount,
            item,
            model: Vec::new(),
            names: vec!["name0".to_owned()],
            epoch: 1,
            unclean: Vec::new(),
            seed: 0,
            next_name: 1,
            key: 1,
        }
    }

    fn name(&self) -> &str {
        self.names.last().unwrap()
    }

    /// A new name, sometimes a long one.
    fn fresh_name(&mut self) -> String {
        self.next_name += 1;
        let tail = if self.next_name.is_multiple_of(3) { "x".repeat(200) } else { String::new() };
        format!("name{}{tail}", self.next_name)
    }

    pub(super) fn step(&mut self, step: &Step) {
        self.try_step(step).unwrap();
    }

    /// Does a step; the model follows where it succeeds.
    pub(super) fn try_step(&mut self, step: &Step) -> Result<(), TableError> {
        let after = self.after(step);
        match step {
            Step::Write { offset, length } => {
                let bytes = pattern(*length, self.seed.wrapping_add(1));
                self.item.write(&self.mount.seal, &bytes, *offset)?;
                self.seed = self.seed.wrapping_add(1);
            }
            Step::Truncate(size) => self.item.truncate(&self.mount.seal, *size)?,
            Step::Punch { offset, length } => self.item.punch_hole(&self.mount.seal, *offset, *length)?,
            Step::Sync => self.item.sync()?,
            Step::Reopen => self.reopen()?,
            Step::Checkpoint => self.mount.journal.checkpoint()?,
            Step::Remount { clean } => self.remount(*clean),
            Step::Rename => {
                let to = self.fresh_name();
                try_rename_item(&self.mount, self.name(), &to, &self.item, None)?;
                *self.names.last_mut().unwrap() = to;
            }
            Step::Link if self.names.len() < LINK_MAX => {
                let to = self.fresh_name();
                let [from, stored] = [self.name(), &to].map(|name| self.mount.name(name));
                self.item.link(&self.mount.seal, (&self.mount.root, &from), (&self.mount.root, &stored))?;
                self.names.insert(0, to);
            }
            Step::Unlink if self.names.len() > 1 => {
                let gone = self.mount.name(&self.names[0]);
                self.item.settle()?;
                self.mount.root.unlink(&gone)?;
                self.names.remove(0);
                self.item.unlinked(&self.mount.root, &gone);
            }
            Step::ReEncrypt => self.re_encrypt()?,
            Step::Link | Step::Unlink => {}
        }
        self.model = after;
        Ok(())
    }

    /// What the item holds after a step.
    pub(super) fn after(&self, step: &Step) -> Vec<u8> {
        let mut model = self.model.clone();
        let place = |number: u64| usize::try_from(number).unwrap();
        match step {
            Step::Write { offset, length } => {
                let (from, to) = (place(*offset), place(*offset) + length);
                model.resize(model.len().max(to), 0);
                model[from..to].copy_from_slice(&pattern(*length, self.seed.wrapping_add(1)));
            }
            Step::Truncate(size) => model.resize(place(*size), 0),
            Step::Punch { offset, length } => {
                let end = place(offset + length).min(model.len());
                model[place(*offset).min(end)..end].fill(0);
            }
            Step::Sync
            | Step::Reopen
            | Step::Checkpoint
            | Step::Remount { .. }
            | Step::Rename
            | Step::Link
            | Step::Unlink
            | Step::ReEncrypt => {}
        }
        model
    }

    fn re_encrypt(&mut self) -> Result<(), TableError> {
        let step = self.item.re_encrypt(&self.mount.re_seal())?;
        if step == super::super::Step::Nothing {
            self.key += 1;
            self.mount.keys.install_for_tests(versions(1, self.key));
            self.item.re_encrypt(&self.mount.re_seal())?;
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), TableError> {
        // The old one goes first: what it holds must be in the file.
        self.next_name += 1;
        let name = self.mount.name(&format!("stand-in{}", self.next_name));
        let root = &self.mount.root;
        self.item = Item::create(root, &name, 0o600, None, ItemKind::Regular, &[], &self.mount.seal)?;
        self.item = self.mount.item(self.names.last().unwrap())?;
        Ok(())
    }

    /// Opens the item again; false after a flush that failed: the journal then takes nothing more, as it must.
    pub(super) fn goes_on(&mut self) -> bool {
        match self.reopen() {
            Ok(()) => true,
            Err(TableError::Io(error)) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
                false
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    fn remount(&mut self, clean: bool) {
        if clean {
            self.mount.journal.close().unwrap();
        } else {
            self.unclean.push(self.epoch);
        }
        self.epoch += 1;
        self.mount = Mount::open(&self.root, self.epoch, &self.unclean);
        self.mount.keys.install_for_tests(versions(1, self.key));
        self.item = self.mount.item(self.names.last().unwrap()).unwrap();
    }

    pub(super) fn check(&self) {
        assert_eq!(self.item.size().unwrap(), self.model.len() as u64);
        let found = self.mount.read(&self.item).unwrap();
        assert!(found == self.model, "differs from byte {:?}", found.iter().zip(&self.model).position(|(a, b)| a != b));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_item_holds_what_was_written(steps in steps(25)) {
        let (_scratch, root) = store();
        let mut run = Run::new(&root);
        for step in &steps {
            run.step(step);
            run.check();
        }
        for name in &run.names {
            let again = run.mount.item(name).unwrap();
            prop_assert!(run.mount.read(&again).unwrap() == run.model);
        }
        run.step(&Step::Remount { clean: true });
        run.check();
    }
}
