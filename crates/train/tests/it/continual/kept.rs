//! The file of what is kept: it gives back what was put in, and nothing from
//! broken bytes but an error.

use tierline_engine::Stop;
use tierline_graph::{Elements, Tensor};
use tierline_train::continual::{Kept, Memory, Replay, Said};
use tierline_train::data::{Dataset, Targets};

use super::learning::{job, learner, tasks};

fn kept(table: &str) -> Kept {
    let tasks = tasks();
    let mut learner = learner(&job(table), Kept::default());
    for [seen, _] in &tasks[..2] {
        learner.learn(seen, &Stop::never(), &mut |_| ()).unwrap().unwrap();
    }
    learner.kept().clone()
}

#[test]
fn files_give_back_what_was_put_in() {
    for table in [
        "",
        "[continual.replay]\nexamples = 12\nlogits = true\n[continual.ewc]\n[continual.si]",
        "[continual.replay]\nper_class = 3\npick = 'herding'\n[continual.isolation]",
    ] {
        let kept = kept(table);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.safetensors");
        kept.save(&path).unwrap();
        assert_eq!(Kept::load(&path).unwrap(), kept, "{table}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
    // Targets that are numbers, and features that are.
    let features = Tensor::new([3, 2], Elements::F32(vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])).unwrap();
    let values = Tensor::new([3, 1], Elements::F32(vec![0.5, 1.5, 2.5])).unwrap();
    let data = Dataset::new("numbers", features, Targets::Values(values)).unwrap();
    let settings = Replay { examples: Some(2), ..Replay::default() };
    let mut memory = Memory::new(&settings, 1, &data, 0).unwrap();
    assert!(memory.dataset().unwrap().is_none());
    let empty = Kept { tasks: 1, memory: Some(memory.clone()), ..Kept::default() };
    assert_eq!(Kept::parse(&empty.to_bytes().unwrap()).unwrap(), empty);
    memory.add(&data, Said::default()).unwrap();
    assert_eq!((memory.len(), memory.bytes()), (2, 24));
    let kept = Kept { tasks: 1, memory: Some(memory), ..Kept::default() };
    assert_eq!(Kept::parse(&kept.to_bytes().unwrap()).unwrap(), kept);
}

#[test]
fn broken_files_are_refused() {
    let kept = kept("[continual.replay]\nexamples = 4\nlogits = true\n[continual.ewc]\n[continual.isolation]");
    let file = kept.to_bytes().unwrap();
    let mut rng = fastrand::Rng::with_seed(1);
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    for turn in 0..600 {
        let mut broken = file.clone();
        match turn % 3 {
            0 => broken.truncate(rng.usize(0..file.len())),
            1 => broken[rng.usize(0..header)] = rng.u8(..),
            _ => {
                for _ in 0..8 {
                    let at = rng.usize(0..file.len());
                    broken[at] = rng.u8(..);
                }
            }
        }
        // What is read is whole: it makes examples, and a file again.
        if let Ok(read) = Kept::parse(&broken) {
            if let Some(memory) = &read.memory {
                memory.dataset().unwrap();
            }
            read.to_bytes().unwrap();
        }
    }
    let mut nan = kept.clone();
    nan.ewc.as_mut().unwrap().stiffness.values_mut().next().unwrap()[0] = f32::NAN;
    assert!(Kept::parse(&nan.to_bytes().unwrap()).unwrap_err().contains("finite"));
    let mut below = kept.clone();
    below.ewc.as_mut().unwrap().stiffness.values_mut().next().unwrap()[0] = -1.0;
    assert!(Kept::parse(&below.to_bytes().unwrap()).unwrap_err().contains("below 0"));
    let mut unowned = kept.clone();
    unowned.owners.as_mut().unwrap().0.values_mut().next().unwrap()[0] = 9;
    assert!(Kept::parse(&unowned.to_bytes().unwrap()).unwrap_err().contains("tasks that there weren't"));
    let mut apart = kept;
    apart.ewc.as_mut().unwrap().anchor.pop_first();
    assert!(Kept::parse(&apart.to_bytes().unwrap()).unwrap_err().contains("of other weights"));
    assert!(Kept::parse(b"").is_err());
    assert!(
        Kept::load(std::path::Path::new("nowhere.safetensors")).unwrap_err().to_string().contains("cannot be read")
    );
}
