//! Random work against a vector of bytes a file.

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Commit(usize, Vec<Edit>),
    Read(usize, usize, usize),
    Sync(usize),
    SyncDirect(usize),
    SyncJournal,
    Checkpoint,
    /// Open files are dropped and opened again, with what is pending.
    Forget(usize),
    Reopen,
    /// As after a kill: nothing that was written is lost.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let file = || 0..FILES;
    prop_oneof![
        10 => (file(), edits()).prop_map(|(file, edits)| Step::Commit(file, edits)),
        4 => (file(), 0..22_000_usize, 0..9_000_usize).prop_map(|(file, at, length)| Step::Read(file, at, length)),
        2 => file().prop_map(Step::Sync),
        1 => file().prop_map(Step::SyncDirect),
        1 => Just(Step::SyncJournal),
        2 => Just(Step::Checkpoint),
        1 => file().prop_map(Step::Forget),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_hold_what_was_written(steps in proptest::collection::vec(step(), 1..60), limit in 0..40_000_u64) {
        let (_scratch, storage) = store();
        let root = storage.root();
        let mut journal = open(&root).0;
        // A small limit runs checkpoints by itself.
        journal.set_pending_limit(limit);
        let mut files = open_items(&journal, &root);
        let mut models: Vec<Vec<u8>> = (0..FILES).map(start).collect();
        for step in steps {
            match step {
                Step::Commit(file, edits) => {
                    let ops = edit(&mut models[file], &edits);
                    commit(&files[file], &ops).unwrap();
                }
                Step::Read(file, at, length) => {
                    let mut buffer = vec![0xee; length];
                    let count = files[file].read_at(&mut buffer, at as u64).unwrap();
                    let end = models[file].len().min(at + length);
                    let expected = models[file].get(at..end).unwrap_or(&[]);
                    prop_assert_eq!(&buffer[..count], expected);
                }
                Step::Sync(file) => files[file].sync().unwrap(),
                Step::SyncDirect(file) => files[file].sync_direct().unwrap(),
                Step::SyncJournal => journal.sync().unwrap(),
                Step::Checkpoint => {
                    journal.checkpoint().unwrap();
                    prop_assert_eq!(journal.pending_bytes(), 0);
                    prop_assert_eq!(&backing_bytes(&root), &models);
                }
                Step::Forget(file) => {
                    files.remove(file);
                    files.insert(file, open_item(&journal, &root, file));
                }
                Step::Reopen => {
                    journal.close().unwrap();
                    prop_assert_eq!(&backing_bytes(&root), &models);
                    let (next, replayed) = open(&root);
                    prop_assert_eq!(replayed, Replayed::default());
                    journal = next;
                    files = open_items(&journal, &root);
                }
                Step::Kill => {
                    journal.abandon();
                    journal = open(&root).0;
                    prop_assert_eq!(&backing_bytes(&root), &models);
                    files = open_items(&journal, &root);
                }
            }
            for (file, model) in files.iter().zip(&models) {
                prop_assert_eq!(file.len(), model.len() as u64);
                prop_assert!(&read_all(file) == model);
            }
        }
        journal.close().unwrap();
        prop_assert_eq!(root.open_dir("journal".as_ref()).unwrap().list().unwrap().len(), 0);
    }
}
