//! The demonstration.

mod boxes;
mod draw;
mod picture;
mod table;

fn main() -> anyhow::Result<()> {
    // development: demo prepare PIC OUT.npy | demo draw PIC MAP.npy OUT.png
    let args: Vec<String> = std::env::args().collect();
    let pic = picture::load(args[2].as_ref())?;
    let fitted = picture::fit(&pic, [640, 640])?;
    if args[1] == "prepare" {
        std::fs::write(&args[3], tierline_codec::npy::write(&fitted.tensor)?)?;
    } else {
        let map = tierline_codec::npy::read(&std::fs::read(&args[3])?)?;
        let found: Vec<_> = boxes::find(boxes::Map { values: map.as_f32().unwrap(), width: 640 })
            .into_iter()
            .map(|b| b.scaled(fitted.scale))
            .collect();
        println!("{found:#?}");
        draw::boxes(&pic, &found).save(&args[4])?;
        println!("{}", table::Table::new(["a"]));
        println!("{}", table::milliseconds(None));
    }
    Ok(())
}
